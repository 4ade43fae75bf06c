"""`pairs/<dataset>`: canonical pairs in parquet files, training and held out, and their counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vcsoup_dist.preferences.pair import Pair, answers_id, prompt_id
from vcsoup_dist.records.json_record import read_record, write_record
from vcsoup_dist.records.messages import MESSAGES

MANIFEST = "manifest.json"
HELD_OUT = "heldout.parquet"
REJECTED_ROWS = "rejected_rows.parquet"
FILE_PAIRS = 1 << 16
"""Training pairs in a file, and so in one of their scores; the last may have fewer."""
GROUP_ROWS = 512
"""Rows in a row group: what is read at least to get at one of them."""
REJECTED = pa.schema(
    [("source", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("text", pa.string())]
)


def pairs_schema(columns: Sequence[str]) -> pa.Schema:
    """Columns of a file of pairs; `columns` are the scores that the data carries."""
    ids = [(name, pa.string()) for name in ("id", "prompt_id", "answers_id")]
    texts = [("chosen", pa.string()), ("rejected", pa.string())]
    scores = [(name, pa.float64()) for name in columns]
    return pa.schema([*ids, ("prompt", MESSAGES), *texts, *scores])


def pair_row(pair: Pair) -> dict[str, Any]:
    """A pair as a row of `pairs_schema`.

    Two datasets that prefer different ones of the same answers have pairs of different `id` but of
    the same `answers_id`.
    """
    ids = {
        "id": pair.id,
        "prompt_id": prompt_id(pair.prompt),
        "answers_id": answers_id(pair.prompt, pair.chosen, pair.rejected),
    }
    texts = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    return {**ids, **texts, **pair.columns}


def train_name(index: int) -> str:
    """File name of training pairs, and of their scores."""
    return f"train-{index:05d}.parquet"


@dataclass(frozen=True)
class PairsFile:
    """A file of consecutive pairs, or of their scores."""

    file: str
    """Its name in the product's folder."""
    rows: int


@dataclass(frozen=True)
class PairsManifest:
    """What became of the rows of a dataset; counts are of pairs where nothing else is said."""

    VERSION: ClassVar[int] = 2

    rows: int
    """Read."""
    train: int
    heldout: int
    files: list[PairsFile]
    """Of the training pairs, in order."""
    duplicates: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason -> rows that cannot be used."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> sound rows that make no pair, such as ties."""
    joined: int = 0
    """Rows that are one half of a pair that another row stands for."""
    returned_prompts: int = 0
    """Prompts that come back after others, of formats that pair rows which follow one another."""
    not_read: dict[str, int] = field(default_factory=dict)
    """Column that no format reads -> rows that fill it."""
    heldout_in_train: int = 0
    """Held-out prompts that training rows have too."""
    heldout_in_train_pairs: int = 0
    """Training pairs left out for that."""

    def write(self, folder: Path) -> None:
        """Write manifest.json into the folder of a product."""
        write_record(folder / MANIFEST, self)

    @classmethod
    def read(cls, folder: Path) -> PairsManifest:
        """Read that of a product; UserError where it is damaged or of another version."""
        return read_record(folder / MANIFEST, cls)


@dataclass(frozen=True)
class PairSlice:
    """Consecutive pairs of a file: a shard, the unit of work and of recovery."""

    file: Path
    first: int
    rows: int


def cut_rows(file: Path, rows: int, most: int) -> list[PairSlice]:
    """The first `rows` rows of a file, at most so many at a time."""
    return [PairSlice(file, first, min(most, rows - first)) for first in range(0, rows, most)]


def read_slice(part: PairSlice) -> list[Pair]:
    """The pairs of a slice, at least one; only the row groups that hold them are read."""
    file = pq.ParquetFile(part.file)
    metadata = file.metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    groups, skipped = overlapping_groups(sizes, part.first, part.rows)
    table = file.read_row_groups(groups, use_threads=False).slice(skipped, part.rows)
    columns = table.column_names[len(pairs_schema([])) :]
    return [
        Pair(
            row["id"],
            row["prompt"],
            row["chosen"],
            row["rejected"],
            {name: row[name] for name in columns},
        )
        for row in table.to_pylist()
    ]


def overlapping_groups(sizes: Sequence[int], first: int, rows: int) -> tuple[list[int], int]:
    """Which groups of so many rows hold the `rows` rows from `first` on, at least one.

    Returns them, and how many rows of theirs come before the first.
    """
    ends = np.cumsum(sizes)
    start = int(np.searchsorted(ends, first, side="right"))
    stop = int(np.searchsorted(ends, first + rows, side="left")) + 1
    before = int(ends[start]) - sizes[start]
    return list(range(start, stop)), first - before


class AppendedTable:
    """A parquet file that grows a row group at a time; a context manager."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.writer = pq.ParquetWriter(path, schema)
        self.buffer: list[dict[str, Any]] = []

    def __enter__(self) -> AppendedTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left; once it is closed, this does nothing."""
        self._flush()
        self.writer.close()

    def add(self, row: dict[str, Any]) -> None:
        """Append one row of the schema."""
        self.buffer.append(row)
        if len(self.buffer) == GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self.buffer:
            self.writer.write_table(pa.Table.from_pylist(self.buffer, schema=self.schema))
            self.buffer.clear()
