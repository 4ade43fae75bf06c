"""The parquet files of `filtered/<method>/<value>`, which TRL's DPOTrainer reads as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vcsoup_dist.consistency.candidates import Candidates
from vcsoup_dist.consistency.filtering import Choice
from vcsoup_dist.scoring.pair_files import MESSAGES

PAIRS = "pairs.parquet"


def filtered_schema(values: Sequence[str]) -> pa.Schema:
    """TRL's conversational preference columns, and what the filter knows of each pair."""
    texts = [(name, MESSAGES) for name in ("prompt", "chosen", "rejected")]
    origin = [("dataset", pa.string()), ("turned", pa.bool_())]
    numbers = ["consistency", "norm", *(f"gap_{value}" for value in values)]
    return pa.schema(
        [("id", pa.string()), *texts, *origin, *((name, pa.float64()) for name in numbers)]
    )


def write_filtered(
    path: Path,
    pairs: Sequence[Path],
    candidates: Candidates,
    choice: Choice,
    values: Sequence[str],
) -> None:
    """Write the kept pairs, a row group per file of `pairs`, in the order of the candidates.

    `pairs`: files of canonical pairs, together the candidates in their order.
    """
    schema = filtered_schema(values)
    first = 0
    with pq.ParquetWriter(path, schema) as writer:
        for file in pairs:
            rows = pq.read_table(file, columns=["id", "prompt", "chosen", "rejected"])
            kept = [i for i in range(rows.num_rows) if choice.kept[first + i]]
            texts = rows.take(pa.array(kept, pa.int64())).to_pylist()
            records = [
                _record(row, first + i, candidates, choice, values)
                for i, row in zip(kept, texts, strict=True)
            ]
            if records:
                writer.write_table(pa.Table.from_pylist(records, schema=schema))
            first += rows.num_rows
    assert first == len(candidates.ids)


def sort_by_id(path: Path) -> None:
    """Bring the pairs of a small file into the order of their ids, which mixes its datasets."""
    pq.write_table(pq.read_table(path).sort_by("id"), path)


def _record(
    row: dict[str, Any], i: int, candidates: Candidates, choice: Choice, values: Sequence[str]
) -> dict[str, Any]:
    assert row["id"] == candidates.ids[i]
    chosen, rejected = row["chosen"], row["rejected"]
    if candidates.turned[i]:
        chosen, rejected = rejected, chosen
    gaps = {
        f"gap_{value}": gap for value, gap in zip(values, candidates.gaps[i].tolist(), strict=True)
    }
    return {
        "id": row["id"],
        "prompt": row["prompt"],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "dataset": candidates.datasets[i],
        "turned": bool(candidates.turned[i]),
        "consistency": float(choice.cosines[i]),
        "norm": float(choice.norms[i]),
        **gaps,
    }
