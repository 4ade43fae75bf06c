"""Ragged sequences as one row of tokens, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Pack:
    """S sequences of T tokens in all, laid end to end."""

    input_ids: torch.Tensor
    """[1, T] int64."""
    position_ids: torch.Tensor
    """[1, T] int64; starts again at 0 with every sequence."""
    cu_seqlens: torch.Tensor
    """[S + 1] int32: sequence s is the tokens cu_seqlens[s] to cu_seqlens[s + 1]."""
    max_seqlen: int


def pack(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Pack:
    """Lay token sequences (none empty) end to end."""
    lengths = [len(sequence) for sequence in sequences]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    return Pack(
        torch.tensor([token for each in sequences for token in each], device=device)[None],
        torch.cat([torch.arange(length) for length in lengths]).to(device)[None],
        ends.to(device=device, dtype=torch.int32),
        max(lengths),
    )


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
