"""The parquet files of `scores/<dataset>/<value>`: one per slice of pairs, and their summary."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.files import sync, write_atomically

Array = NDArray[np.float64]

SCHEMA = pa.schema([("id", pa.string()), ("chosen", pa.float64()), ("rejected", pa.float64())])
CUTS = (b"truncated", b"truncated_responses")  # metadata keys: counts of texts


@dataclass(frozen=True)
class ScoreShard:
    """The rewards of P pairs, higher being better."""

    ids: list[str]
    chosen: Array
    """[P] float64."""
    rejected: Array
    """[P] float64."""
    truncated: int = 0
    """Texts (at most 2 P) of which something was cut."""
    truncated_responses: int = 0
    """Those of them whose response alone was too long."""


def score_name(index: int, heldout: bool = False) -> str:
    """File name of the scores of training shard, or held-out slice, `index`."""
    return f"{'heldout' if heldout else 'shard'}-{index:05d}.parquet"


def write_scores(path: Path, shard: ScoreShard) -> None:
    """Write aside, fsync, rename."""
    table = pa.Table.from_arrays([shard.ids, shard.chosen, shard.rejected], schema=SCHEMA)
    counts = (shard.truncated, shard.truncated_responses)
    metadata = {key: str(count).encode() for key, count in zip(CUTS, counts, strict=True)}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table.replace_schema_metadata(metadata), aside)
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)


def read_scores(path: Path) -> ScoreShard:
    """The scores of one shard."""
    table = pq.read_table(path)
    truncated, responses = (int(table.schema.metadata[key]) for key in CUTS)
    chosen, rejected = (table[name].to_numpy() for name in ("chosen", "rejected"))
    return ScoreShard(table["id"].to_pylist(), chosen, rejected, truncated, responses)


def write_summary(folder: Path, shards: Sequence[Path], heldout: Sequence[Path]) -> dict[str, Any]:
    """Write manifest.json over all score files of a product, and return it.

    All statistics are of the training shards: `mean` and `std` (ddof = 0) over chosen and rejected
    pooled; `constant`: no two rewards differ.
    """
    count, mean, squares = 0, 0.0, 0.0
    lowest, highest = math.inf, -math.inf
    truncated = responses = 0
    listed = []
    for path in shards:
        shard = read_scores(path)
        pooled = np.concatenate([shard.chosen, shard.rejected])
        # Chan's parallel update of mean and sum of squared deviations.
        shift = float(pooled.mean()) - mean
        total = count + len(pooled)
        squares += float(np.square(pooled - pooled.mean()).sum())
        squares += shift**2 * count * len(pooled) / total
        mean += shift * len(pooled) / total
        count = total
        lowest, highest = min(lowest, float(pooled.min())), max(highest, float(pooled.max()))
        truncated += shard.truncated
        responses += shard.truncated_responses
        listed.append({"file": path.name, "rows": len(shard.ids)})
    manifest = {
        "rows": count // 2,
        "truncated": truncated,
        "truncated_responses": responses,
        "mean": mean,
        "std": math.sqrt(squares / count),
        "min": lowest,
        "max": highest,
        "constant": lowest == highest,
        "shards": listed,
        "heldout": [{"file": each.name, "rows": len(read_scores(each).ids)} for each in heldout],
    }
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return manifest
