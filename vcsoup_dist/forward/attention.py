"""Causal attention inside the sequences of a pack, behind transformers' attention interface.

Three kernels compute the same: flash-attn, PyTorch's own variable-length FlashAttention, and SDPA
looped over the sequences, which on a CPU is about five times faster than one block-diagonal mask.
Where sequences share a prefix, a sequence's queries are its own tokens and its keys the prefix too;
causality counts from the end, which is how FlashAttention aligns fewer queries than keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from vcsoup_dist.errors import UserError

# transformers reserves every name with "flash" in it.
NAMES = {
    "segments": "vcsoup_segments",
    "torch_varlen": "vcsoup_torch_varlen",
    "flash_attn": "vcsoup_dao_varlen",
}
WIDEST = 256
"""Head width that FlashAttention 2 goes up to."""


def choose_attention(
    wanted: str, device: torch.device | str, dtype: torch.dtype, config: Any = None
) -> str:
    """Name of the attention implementation to load a model with, for `wanted` in the recipe.

    config: the model's; some architectures need what not every kernel has. UserError where the
    kernel does not support this machine, dtype or architecture.
    """
    register_kernels()
    if config is not None:
        config = config.get_text_config()
    on_gpu = torch.device(device).type == "cuda"
    half = dtype in (torch.bfloat16, torch.float16)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    wide = _widest_head(config) > WIDEST and f"it has no heads wider than {WIDEST}"
    missing = {
        "flash_attn": _flash_attn_lacks() or wide,
        "torch_varlen": (not _has_varlen() and "this PyTorch has no such kernel; 2.11 has")
        or (capped and "it cannot soft-cap scores, as this architecture does")
        or wide,
    }
    if wanted == "auto":
        usable = [name for name in missing if on_gpu and half and not missing[name]]
        wanted = usable[0] if usable else "segments"
    elif wanted != "segments" and (reason := missing[wanted]):
        raise UserError(f"attention `{wanted}`: {reason}")
    elif wanted != "segments" and not (on_gpu and half):
        raise UserError(f"attention `{wanted}` needs a GPU and bf16, not {device} and {dtype}")
    return NAMES[wanted]


def register_kernels() -> None:
    """Make the kernels known to transformers by their `NAMES`."""
    from transformers import AttentionInterface

    for name, kernel in KERNELS.items():
        AttentionInterface.register(NAMES[name], _for_transformers(kernel))


def _widest_head(config: Any) -> int:
    widths = ("head_dim", "global_head_dim", "qk_head_dim")
    return max(int(getattr(config, name, None) or 0) for name in widths)


def _flash_attn_lacks() -> str | None:
    """Why the package flash-attn cannot be used; None where it can."""
    try:
        import flash_attn
    except ImportError as error:
        return f"the package flash-attn (extra `gpu`) cannot be imported: {error}"
    if tuple(map(int, flash_attn.__version__.split(".")[:2])) < (2, 6):
        return f"flash-attn {flash_attn.__version__} is too old; 2.6 soft-caps"
    return None


def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True)
class _Call:
    """Attention over the S sequences of a pack; keys and values have shared prefixes repeated."""

    query: torch.Tensor
    """[1, heads, T, width]."""
    key: torch.Tensor
    """[1, key heads, K, width]."""
    value: torch.Tensor
    """[1, key heads, K, value width]."""
    bounds: tuple[torch.Tensor, torch.Tensor]
    """[S + 1] int32: of each sequence's queries, and of its keys."""
    longest: tuple[int, int]
    """Queries and keys of the longest."""
    scaling: float | None
    dropout: float
    window: int | None
    softcap: float | None

    def in_rows(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value as [T, heads, width]; narrower values (latent attention) padded."""
        padded = functional.pad(self.value, (0, self.query.shape[-1] - self.value.shape[-1]))
        query, key, value = (each[0].transpose(0, 1) for each in (self.query, self.key, padded))
        return query, key, value


Kernel = Callable[[_Call], torch.Tensor]
"""Returns [1, T, heads, width]."""


def _for_transformers(kernel: Kernel) -> Callable[..., tuple[torch.Tensor, None]]:
    """A kernel behind the signature by which transformers calls one."""

    def attention(
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
        _refuse(attention_mask, kwargs)
        index = kwargs["key_index"]
        if index is not None:
            key, value = key.index_select(2, index), value.index_select(2, index)
        call = _Call(
            query,
            key,
            value,
            (kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]),
            (int(kwargs["max_length_q"]), int(kwargs["max_length_k"])),
            scaling,
            dropout,
            sliding_window,
            softcap,
        )
        return kernel(call), None

    return attention


def _segments(call: _Call) -> torch.Tensor:
    """SDPA over each sequence by itself."""
    ends, ends_k = (bounds.tolist() for bounds in call.bounds)
    outputs = []
    for s in range(len(ends) - 1):
        queries = call.query[:, :, ends[s] : ends[s + 1]]
        keys = call.key[:, :, ends_k[s] : ends_k[s + 1]]
        values = call.value[:, :, ends_k[s] : ends_k[s + 1]]
        count, count_k = queries.shape[2], keys.shape[2]
        window = call.window if call.window and call.window < count_k else None
        if call.softcap is not None:
            visible = _visible(count, count_k, window, queries.device)
            outputs.append(_soft_capped(queries, keys, values, visible, call.scaling, call.softcap))
            continue
        whole = count == count_k and window is None
        outputs.append(
            functional.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=None if whole else _visible(count, count_k, window, queries.device),
                is_causal=whole,
                dropout_p=call.dropout,
                scale=call.scaling,
                enable_gqa=queries.shape[1] != keys.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _torch_varlen(call: _Call) -> torch.Tensor:
    """PyTorch's variable-length FlashAttention."""
    from torch.nn.attention.varlen import varlen_attn

    if call.dropout or call.softcap is not None:
        raise UserError("attention `torch_varlen` has neither dropout nor soft-capped scores")
    output = varlen_attn(
        *call.in_rows(),
        *call.bounds,
        *call.longest,
        scale=call.scaling,
        window_size=(call.window - 1 if call.window else -1, 0),
        enable_gqa=call.query.shape[1] != call.key.shape[1],
    )
    assert isinstance(output, torch.Tensor)
    return output[None, ..., : call.value.shape[-1]]


def _flash_attn(call: _Call) -> torch.Tensor:
    """The package flash-attn."""
    from flash_attn import flash_attn_varlen_func

    output: torch.Tensor = flash_attn_varlen_func(
        *call.in_rows(),
        *call.bounds,
        *call.longest,
        dropout_p=call.dropout,
        softmax_scale=call.scaling,
        causal=True,
        window_size=(call.window - 1, 0) if call.window else (-1, -1),
        softcap=call.softcap or 0.0,
    )
    return output[None, ..., : call.value.shape[-1]]


KERNELS: dict[str, Kernel] = {
    "segments": _segments,
    "torch_varlen": _torch_varlen,
    "flash_attn": _flash_attn,
}


def _refuse(mask: torch.Tensor | None, kwargs: dict[str, Any]) -> None:
    """UserError for whatever changes scores or visibility and is not computed here."""
    if not {"cu_seq_lens_q", "cu_seq_lens_k", "key_index"} <= kwargs.keys():
        raise UserError(
            "this architecture does not pass cu_seq_lens_q to its attention, so packed "
            "sequences would see each other; it is not supported"
        )
    if kwargs.get("s_aux") is not None:
        raise UserError("attention with sinks is not supported yet")
    if mask is not None or kwargs.get("position_bias") is not None:
        raise UserError("packed sequences take no attention mask and no position bias")


def _visible(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[queries, keys] bool: what the last `queries` of `keys` tokens see: themselves and all, or
    the window - 1, tokens before."""
    own = torch.arange(keys - queries, keys, device=device)[:, None]
    distance = own - torch.arange(keys, device=device)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _soft_capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attention with the scores z replaced by softcap * tanh(z / softcap) (Gemma-2)."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(repeats, dim=1) for each in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scale / softcap))
    scores = scores.masked_fill(~visible, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value
