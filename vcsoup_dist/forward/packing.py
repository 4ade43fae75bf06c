"""Ragged sequences as one row of tokens, without padding and without repeating shared prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

Ids = Sequence[int] | np.ndarray
"""Token ids."""


@dataclass(frozen=True)
class Pack:
    """S sequences in one row of T tokens.

    The tokens of sequence s in the row are its *segment*, `cu_seqlens[s]` to
    `cu_seqlens[s + 1]`. A sequence that shares a prefix with one before it has only the rest of its
    tokens there, which attend to the prefix and the segment.
    """

    input_ids: torch.Tensor
    """[1, T] int64."""
    position_ids: torch.Tensor
    """[1, T] int64; position in its sequence, the prefix included."""
    cu_seqlens: torch.Tensor
    """[S + 1] int32: bounds of the segments."""
    max_seqlen: int
    """Tokens of the longest segment."""
    keys: torch.Tensor | None
    """[K] int64: the row's positions that sequence after sequence attends to, prefixes included;
    None where no prefix is shared, and every segment attends to itself."""
    cu_seqlens_k: torch.Tensor
    """[S + 1] int32: bounds of each sequence's part of `keys`."""
    max_seqlen_k: int
    """Tokens of the longest sequence."""


@dataclass(frozen=True)
class Branch:
    """A sequence that continues the first `shared` tokens of the sequence `of`."""

    ids: Ids
    """All its tokens, those of the prefix included."""
    of: int = -1
    """Index of an earlier sequence that shares nothing itself; -1: none."""
    shared: int = 0
    """Less than len(ids): a segment has at least one token."""


def pack(sequences: Sequence[Ids], device: torch.device | str = "cpu") -> Pack:
    """Lay token sequences (none empty) end to end; each attends to itself alone."""
    return pack_branches([Branch(ids) for ids in sequences], device)


def pack_branches(branches: Sequence[Branch], device: torch.device | str = "cpu") -> Pack:
    """Lay sequences end to end; of those that share a prefix only the rest."""
    own = [np.asarray(each.ids)[each.shared :] for each in branches]
    lengths = [len(part) for part in own]
    ends = np.cumsum([0, *lengths])
    positions = [np.arange(each.shared, len(each.ids)) for each in branches]
    spans = [
        np.concatenate([_prefix(each, ends), np.arange(ends[s], ends[s + 1])])
        for s, each in enumerate(branches)
    ]
    whole = [len(span) for span in spans]
    shares = any(each.shared for each in branches)

    cu_seqlens = to_device(ends, torch.int32, device)
    return Pack(
        to_device(np.concatenate(own), torch.int64, device)[None],
        to_device(np.concatenate(positions), torch.int64, device)[None],
        cu_seqlens,
        max(lengths),
        to_device(np.concatenate(spans), torch.int64, device) if shares else None,
        to_device(np.cumsum([0, *whole]), torch.int32, device) if shares else cu_seqlens,
        max(whole),
    )


def to_device(array: np.ndarray, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """A small array as a tensor on a device, without waiting for the GPU."""
    tensor = torch.from_numpy(array).to(dtype)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _prefix(branch: Branch, ends: np.ndarray) -> np.ndarray:
    start = ends[branch.of] if branch.shared else 0
    return np.arange(start, start + branch.shared)


def common_prefix(first: Ids, second: Ids) -> int:
    """Length of the common prefix; one less where that would be all of `second`."""
    count = min(len(first), len(second))
    different = np.flatnonzero(np.asarray(first)[:count] != np.asarray(second)[:count])
    common = int(different[0]) if len(different) else count
    return min(common, len(second) - 1)


def budget_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Indices in batches of at most `tokens_per_batch` tokens, longest first.

    A single longer item is a batch of its own. The same lengths give the same batches.
    """
    batches: list[list[int]] = []
    filled = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or filled + lengths[index] > tokens_per_batch:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += lengths[index]
    return batches
