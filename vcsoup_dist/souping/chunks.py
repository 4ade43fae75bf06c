"""The unit of work, of proof and of recovery: a chunk of one tensor in all policies and soups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vcsoup_dist.checkpoints.digests import CHUNK
from vcsoup_dist.checkpoints.layout import DTYPE_BITS
from vcsoup_dist.checkpoints.writer import Shard


class Chunk(NamedTuple):
    """Elements [begin, end) of a tensor."""

    number: int
    """Its place among all chunks of a merge."""
    shard: int
    """Which of the shards it belongs to."""
    tensor: str
    dtype: str
    """What it is written as."""
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Of one soup."""
        return (self.end - self.begin) * DTYPE_BITS[self.dtype] // 8


def cut_chunks(shards: Sequence[Shard]) -> Iterator[Chunk]:
    """All chunks of all shards, in the order of the bytes of the files."""
    number = 0
    for place, shard in enumerate(shards):
        for name, dtype, shape in shard.tensors:
            numel = math.prod(shape)
            for begin in range(0, numel, CHUNK):
                yield Chunk(number, place, name, dtype, begin, min(begin + CHUNK, numel))
                number += 1


def deal_shards(shards: Sequence[Shard], world_size: int) -> list[list[int]]:
    """The shards of every rank: the largest first to the rank with the fewest bytes so far."""
    loads = [0] * world_size
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    for place in sorted(range(len(shards)), key=lambda each: (-shards[each].nbytes, each)):
        rank = loads.index(min(loads))
        loads[rank] += shards[place].nbytes
        dealt[rank].append(place)
    return [sorted(places) for places in dealt]
