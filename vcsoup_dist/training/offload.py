"""Activations in host memory between the forward and the backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

SMALLEST = 1 << 18  # elements; smaller tensors are not worth a copy


def is_offloaded(tensor: torch.Tensor) -> bool:
    """Whether a tensor that autograd keeps is a large activation, not a weight."""
    base = tensor if tensor._base is None else tensor._base
    return not base.is_leaf and tensor.is_floating_point() and tensor.numel() >= SMALLEST


def offload_activations(wanted: bool) -> AbstractContextManager[Any]:
    """A context in which tensors that autograd keeps for the backward pass move to host memory.

    With gradient checkpointing that is each layer's input. PyTorch's own `save_on_cpu` would copy
    weights too, which under ZeRO-3 are gathered again for the backward pass anyway.
    """
    if not wanted:
        return nullcontext()

    def pack(tensor: torch.Tensor) -> torch.Tensor | tuple[torch.device, torch.Tensor]:
        if tensor.device.type != "cuda" or not is_offloaded(tensor):
            return tensor
        kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        kept.copy_(tensor, non_blocking=True)
        return tensor.device, kept

    def unpack(packed: torch.Tensor | tuple[torch.device, torch.Tensor]) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        device, kept = packed
        return kept.to(device, non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
