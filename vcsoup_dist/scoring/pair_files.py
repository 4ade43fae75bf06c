"""The parquet files of `pairs/<dataset>`: canonical pairs, in shards for training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vcsoup_dist.preferences import Pair

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
HELD_OUT = "heldout.parquet"
REJECTED_ROWS = "rejected_rows.parquet"
ROWS_PER_GROUP = 256
REJECTED = pa.schema(
    [("source", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("text", pa.string())]
)


def pairs_schema(columns: Sequence[str]) -> pa.Schema:
    """Columns of a file of pairs; `columns` are the scores that the data carries."""
    texts = [("chosen", pa.string()), ("rejected", pa.string())]
    scores = [(name, pa.float64()) for name in columns]
    return pa.schema([("id", pa.string()), ("prompt", MESSAGES), *texts, *scores])


def pair_row(pair: Pair) -> dict[str, Any]:
    """A pair as a row of `pairs_schema`."""
    texts = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    return {"id": pair.id, **texts, **pair.columns}


def shard_name(index: int) -> str:
    """File name of a training shard."""
    return f"train-{index:05d}.parquet"


def train_shards(folder: Path) -> list[Path]:
    """The training shards of a finished `pairs/<dataset>`, in order."""
    return [folder / shard["file"] for shard in read_manifest(folder)["shards"]]


def read_manifest(folder: Path) -> dict[str, Any]:
    """A product's manifest.json."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert isinstance(manifest, dict)
    return manifest


def iter_pairs(path: Path) -> Iterator[Pair]:
    """The pairs of a file, a row group at a time."""
    file = pq.ParquetFile(path)
    columns = file.schema_arrow.names[4:]
    for batch in file.iter_batches(batch_size=ROWS_PER_GROUP):
        for row in batch.to_pylist():
            scores = {name: row[name] for name in columns}
            yield Pair(row["id"], row["prompt"], row["chosen"], row["rejected"], scores)


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
