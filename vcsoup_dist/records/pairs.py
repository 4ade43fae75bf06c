"""`pairs/<dataset>`: canonical pairs in parquet files, in shards for training, and their counts."""

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
ROWS_PER_GROUP = 256
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


def shard_name(index: int) -> str:
    """File name of a training shard."""
    return f"train-{index:05d}.parquet"


@dataclass(frozen=True)
class ShardFile:
    """A file of consecutive pairs, or of their scores."""

    file: str
    """Its name in the product's folder."""
    rows: int


@dataclass(frozen=True)
class PairsManifest:
    """What became of the rows of a dataset; counts are of pairs where nothing else is said."""

    VERSION: ClassVar[int] = 1

    rows: int
    """Read."""
    train: int
    heldout: int
    shards: list[ShardFile]
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
    """Consecutive pairs of a file: the unit of work and of recovery."""

    file: Path
    first: int
    rows: int


def train_slices(folder: Path) -> list[PairSlice]:
    """The training shards of a finished `pairs/<dataset>`, in order."""
    shards = PairsManifest.read(folder).shards
    return [PairSlice(folder / shard.file, 0, shard.rows) for shard in shards]


def heldout_slices(folder: Path, shard_pairs: int) -> list[PairSlice]:
    """The held-out pairs of a finished `pairs/<dataset>`, at most `shard_pairs` at a time."""
    rows = PairsManifest.read(folder).heldout
    return [
        PairSlice(folder / HELD_OUT, first, min(shard_pairs, rows - first))
        for first in range(0, rows, shard_pairs)
    ]


def read_slice(part: PairSlice) -> list[Pair]:
    """The pairs of a slice; only the row groups that hold them are read."""
    file = pq.ParquetFile(part.file)
    ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
    groups = [
        i
        for i, end in enumerate(ends.tolist())
        if end > part.first and end - file.metadata.row_group(i).num_rows < part.first + part.rows
    ]
    before = ends[groups[0]] - file.metadata.row_group(groups[0]).num_rows
    table = file.read_row_groups(groups).slice(part.first - before, part.rows)
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


class AppendedTable:
    """A parquet file that grows a row group at a time; a context manager."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.writer = pq.ParquetWriter(path, schema)
        self.buffer: list[dict[str, Any]] = []

    def __enter__(self) -> AppendedTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self.writer.close()

    def add(self, row: dict[str, Any]) -> None:
        """Append one row of the schema."""
        self.buffer.append(row)
        if len(self.buffer) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self.buffer:
            self.writer.write_table(pa.Table.from_pylist(self.buffer, schema=self.schema))
            self.buffer.clear()
