"""A decoder over a pack: last hidden states, before any head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.packing import Pack

LAYER_TYPES = {"full_attention", "sliding_attention"}
"""In others, such as linear or chunked attention, packed sequences would see each other."""


def can_pack(model: Any) -> bool:
    """Whether a transformers model is a decoder whose attention kernel can be replaced."""
    causal = not getattr(model.config, "is_encoder_decoder", False) and any(
        getattr(module, "is_causal", False) for module in model.modules()
    )
    layers = getattr(model.config.get_text_config(), "layer_types", None)
    known = set(layers or ()) <= LAYER_TYPES
    return causal and known and bool(getattr(model, "_supports_attention_backend", False))


def longest_together(config: Any) -> int | None:
    """Tokens up to which sequences of a model may share a forward; None where all may.

    For RoPE of the types `longrope` and `dynamic` transformers takes frequencies from the largest
    position in a forward: beyond this length a sequence changes the others in its pack.
    """
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in rope.values() if isinstance(each, Mapping)] or [rope]  # by layer type
    limits = []
    for kind in kinds:
        if kind.get("rope_type") == "longrope":
            original = kind.get("original_max_position_embeddings")
            limits.append(original or config.original_max_position_embeddings)
        elif kind.get("rope_type") == "dynamic":
            limits.append(config.max_position_embeddings)
    return min(limits, default=None)


def hidden_states(model: Any, pack: Pack) -> torch.Tensor:
    """Last hidden states [T, H] of every token of a pack, by the model's decoder alone."""
    if not can_pack(model):
        raise UserError(
            f"{type(model).__name__} is not a decoder with a replaceable attention kernel in every "
            "layer; packed sequences are not possible"
        )
    hidden = model.base_model(**pack_arguments(pack)).last_hidden_state[0]
    assert isinstance(hidden, torch.Tensor)
    return hidden


def last_tokens(hidden: torch.Tensor, pack: Pack) -> torch.Tensor:
    """Hidden state [S, H] of the last token of each sequence, whatever its id."""
    return hidden[pack.cu_seqlens[1:].long() - 1]


def pack_arguments(pack: Pack) -> dict[str, Any]:
    """Arguments of a transformers decoder that pass the segments to its kernel."""
    # An all-ones mask, or a cache, would silently let the sequences see each other.
    return {
        "input_ids": pack.input_ids,
        "position_ids": pack.position_ids,
        "attention_mask": None,
        "use_cache": False,
        "cu_seq_lens_q": pack.cu_seqlens,
        "cu_seq_lens_k": pack.cu_seqlens_k,
        "max_length_q": pack.max_seqlen,
        "max_length_k": pack.max_seqlen_k,
        "key_index": pack.keys,
    }
