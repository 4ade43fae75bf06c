"""Scored pairs in blocks: consecutive shards of a dataset, which are in memory together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.records.pairs import HELD_OUT, train_slices
from vcsoup_dist.records.scores import ScoresManifest

Array = NDArray[np.float64]
Ids = NDArray[np.uint64]

PAIRS = 1 << 16
"""A block ends with the shard that fills it. This decides the last bits of the statistics."""


@dataclass(frozen=True)
class Block:
    """Where P pairs of a dataset lie, with their rewards under N values."""

    dataset: str
    pairs: tuple[Path, ...]
    """Files of canonical pairs, together the block's; none where only rewards are asked for."""
    scores: tuple[tuple[Path, ...], ...]
    """[N] the files of each value's rewards, together those of the same pairs in their order."""
    rows: int
    """P."""


def training_blocks(dataset: str, pairs: Path | None, scores: Sequence[Path]) -> list[Block]:
    """The training pairs of a finished `pairs/<dataset>`, with those of its N `scores`."""
    listed = [_listed(folder, "shards") for folder in scores]
    files = [] if pairs is None else [part.file for part in train_slices(pairs)]
    blocks: list[Block] = []
    first = rows = 0
    for last, (_, size) in enumerate(listed[0], start=1):
        rows += size
        if rows >= PAIRS or last == len(listed[0]):
            own = tuple(tuple(file for file, _ in each[first:last]) for each in listed)
            blocks.append(Block(dataset, tuple(files[first:last]), own, rows))
            first, rows = last, 0
    return blocks


def heldout_block(dataset: str, pairs: Path, scores: Sequence[Path]) -> Block:
    """All held-out pairs of a dataset."""
    listed = [_listed(folder, "heldout") for folder in scores]
    rows = sum(size for _, size in listed[0])
    files = tuple(tuple(file for file, _ in each) for each in listed)
    return Block(dataset, (pairs / HELD_OUT,), files, rows)


def _listed(scores: Path, part: Literal["shards", "heldout"]) -> list[tuple[Path, int]]:
    """(file, rows) of the training (`shards`) or `heldout` rewards of a finished product."""
    manifest = ScoresManifest.read(scores)
    files = manifest.shards if part == "shards" else manifest.heldout
    return [(scores / each.file, each.rows) for each in files]


def read_ids(block: Block) -> Ids:
    """[P] the pairs' ids as numbers."""
    tables = [_read(file, ["id"]) for file in block.scores[0]]
    ids = [ids_as_numbers(table["id"]) for table in tables]
    return np.concatenate([np.zeros(0, np.uint64), *ids])


def read_comparisons(block: Block) -> tuple[Ids, Ids]:
    """[P] each: which two answers a pair compares, whichever is preferred, and to which prompt."""
    tables = [_read(file, ["answers_id", "prompt_id"]) for file in block.pairs]
    answers, prompts = (
        np.concatenate([np.zeros(0, np.uint64), *(ids_as_numbers(table[name]) for table in tables)])
        for name in ("answers_id", "prompt_id")
    )
    assert len(answers) == block.rows
    return answers, prompts


def read_rewards(block: Block) -> tuple[Array, Array]:
    """Rewards [P, N] of chosen and rejected answers; NaN where a pair has none.

    Each value's are next to each other in memory.
    """
    rewards = [read_value(block, j) for j in range(len(block.scores))]
    chosen, rejected = (np.stack([each[side] for each in rewards]).T for side in (0, 1))
    return chosen, rejected


def read_value(block: Block, j: int) -> tuple[Array, Array]:
    """Rewards [P] of chosen and rejected answers under value `j`."""
    tables = [_read(file, ["chosen", "rejected"]) for file in block.scores[j]]
    chosen, rejected = (
        np.concatenate([np.zeros(0), *(table[name].to_numpy() for table in tables)])
        for name in ("chosen", "rejected")
    )
    assert len(chosen) == block.rows
    return chosen, rejected


def check_ids(block: Block) -> None:
    """Fail where the files of two values hold other pairs, or the same in another order."""
    for files in zip(*block.scores, strict=True):
        first, *others = (_read(file, ["id"])["id"] for file in files)
        assert all(each.equals(first) for each in others), files


def ids_as_numbers(column: pa.ChunkedArray | pa.Array) -> Ids:
    """Strings of 16 hex digits [P] as numbers [P]."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    column = column.cast(pa.string())
    _, offsets, text = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    assert (np.diff(ends) == 16).all()
    if not len(column):
        return np.zeros(0, np.uint64)
    digits = _DIGITS[np.frombuffer(text, np.uint8)[ends[0] : ends[-1]]]
    joined = digits[0::2] << 4 | digits[1::2]
    return joined.view(">u8").astype(np.uint64)


def _digits() -> NDArray[np.uint8]:
    values = np.zeros(256, np.uint8)
    values[list(b"0123456789abcdef")] = np.arange(16)
    return values


_DIGITS = _digits()


def _read(file: Path, columns: list[str]) -> Any:
    return pq.ParquetFile(file).read(columns=columns, use_threads=False)
