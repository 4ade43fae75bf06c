"""Scored pairs in blocks: what a file of pairs holds, which is in memory together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.records.pairs import HELD_OUT, PairsManifest
from vcsoup_dist.records.scores import ScoresManifest

Array = NDArray[np.float64]
Ids = NDArray[np.uint64]


@dataclass(frozen=True)
class Block:
    """Where P pairs of a dataset lie, with their rewards under N values, or under none.

    How many pairs a block has decides the last bits of the statistics.
    """

    dataset: str
    pairs: Path | None
    """File of canonical pairs; None where only rewards are asked for."""
    scores: tuple[Path, ...]
    """[N] the file of each value's rewards of the same pairs in their order."""
    rows: int
    """P."""


def training_blocks(dataset: str, pairs: Path | None, scores: Sequence[Path]) -> list[Block]:
    """The training pairs of a finished `pairs/<dataset>`, with those of its N `scores`."""
    return [
        Block(
            dataset,
            pairs / each.file if pairs else None,
            tuple(folder / each.file for folder in scores),
            each.rows,
        )
        for each in ScoresManifest.read(scores[0]).files
    ]


def heldout_block(dataset: str, pairs: Path, scores: Sequence[Path] = ()) -> Block:
    """All held-out pairs of a dataset, with the rewards of the finished `scores`."""
    rows = PairsManifest.read(pairs).heldout
    return Block(dataset, pairs / HELD_OUT, tuple(folder / HELD_OUT for folder in scores), rows)


def read_ids(block: Block) -> Ids:
    """[P] the pairs' ids as numbers."""
    return ids_as_numbers(_read(block.scores[0], ["id"])["id"])


def read_comparisons(block: Block) -> tuple[Ids, Ids]:
    """[P] each: which two answers a pair compares, whichever is preferred, and to which prompt."""
    assert block.pairs is not None
    table = _read(block.pairs, ["answers_id", "prompt_id"])
    answers, prompts = (ids_as_numbers(table[name]) for name in ("answers_id", "prompt_id"))
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
    table = _read(block.scores[j], ["chosen", "rejected"])
    assert table.num_rows == block.rows
    chosen, rejected = (table[name].to_numpy() for name in ("chosen", "rejected"))
    return chosen, rejected


def checked_ids(block: Block) -> Ids:
    """As `read_ids`; fails where two values' files hold other pairs, or in another order."""
    first, *others = (_read(file, ["id"])["id"] for file in block.scores)
    assert all(each.equals(first) for each in others), block.scores
    return ids_as_numbers(first)


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
