"""Causal attention inside the segments of a pack, behind transformers' attention interface.

Three kernels compute the same: flash-attn, PyTorch's own variable-length FlashAttention, and SDPA
looped over the segments, which on a CPU is about five times faster than one block-diagonal mask.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch.nn import functional

from vcsoup_dist.errors import UserError

SEGMENTS = "vcsoup_segments"
TORCH_VARLEN = "vcsoup_torch_varlen"
FLASH_ATTN = "flash_attention_2"


def choose_attention(wanted: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """Name of the attention implementation to load a model with, for `wanted` in the recipe.

    Raises UserError where a kernel is asked for that this machine or dtype does not have.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(SEGMENTS, segment_attention)
    AttentionInterface.register(TORCH_VARLEN, torch_varlen_attention)
    on_gpu = torch.device(device).type == "cuda"
    half = dtype in (torch.bfloat16, torch.float16)
    has_flash = importlib.util.find_spec("flash_attn") is not None
    has_varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    missing = {
        "flash_attn": not has_flash and "the package flash-attn is not installed (extra `gpu`)",
        "torch_varlen": not has_varlen and "this PyTorch has no torch.nn.attention.varlen",
    }
    if wanted == "auto":
        usable = [name for name in missing if on_gpu and half and not missing[name]]
        wanted = usable[0] if usable else "segments"
    elif wanted != "segments" and (reason := missing[wanted]):
        raise UserError(f"attention `{wanted}`: {reason}")
    elif wanted != "segments" and not (on_gpu and half):
        raise UserError(f"attention `{wanted}` needs a GPU and bf16, not {device} and {dtype}")
    return {"segments": SEGMENTS, "torch_varlen": TORCH_VARLEN, "flash_attn": FLASH_ATTN}[wanted]


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA over each segment by itself.

    query: [1, heads, T, width]; key, value: [1, key heads, T, width]; returns [1, T, heads, width].
    """
    ends = _segments(kwargs).tolist()
    _refuse(attention_mask, kwargs, softcap)
    outputs = []
    for start, end in zip(ends, ends[1:], strict=False):
        window = sliding_window if sliding_window and sliding_window < end - start else None
        outputs.append(
            functional.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                attn_mask=_band(end - start, window, query.device) if window else None,
                is_causal=window is None,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def torch_varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """PyTorch's variable-length FlashAttention; shapes as in `segment_attention`."""
    from torch.nn.attention.varlen import varlen_attn

    ends = _segments(kwargs)
    _refuse(attention_mask, kwargs, softcap)
    if dropout:
        raise UserError("attention `torch_varlen` has no dropout; set attention_dropout to 0")
    longest = int(kwargs["max_length_q"])
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=(sliding_window - 1 if sliding_window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)
    return output[None], None


def _segments(kwargs: dict[str, Any]) -> torch.Tensor:
    ends = kwargs.get("cu_seq_lens_q")
    if ends is None:
        raise UserError(
            "this architecture does not pass cu_seq_lens_q on to its attention, so packed "
            "sequences would see each other; it is not supported"
        )
    assert isinstance(ends, torch.Tensor)
    return ends


def _refuse(mask: torch.Tensor | None, kwargs: dict[str, Any], softcap: float | None) -> None:
    """Whatever changes scores or visibility and is not computed here must not be ignored."""
    if softcap is not None or kwargs.get("s_aux") is not None:
        raise UserError("attention with score soft-capping or sinks is not supported yet")
    if mask is not None or kwargs.get("position_bias") is not None:
        raise UserError("packed sequences take no attention mask and no position bias")


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """[length, length] bool: each token sees itself and the window - 1 tokens before it."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)
