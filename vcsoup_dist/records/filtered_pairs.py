"""The parquet files of `filtered/<method>/<name>`, which TRL's DPOTrainer reads as they are."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from vcsoup_dist.records.messages import MESSAGES

HELD_OUT = "heldout.parquet"
PREFERENCES = pa.schema(
    [
        ("id", pa.string()),
        *((name, MESSAGES) for name in ("prompt", "chosen", "rejected")),
        ("dataset", pa.string()),
        ("swapped", pa.bool_()),
    ]
)
"""TRL's conversational preference columns, and where a pair is from: all that held-out pairs have.

`swapped`: whether chosen and rejected are exchanged.
"""


def part_name(index: int) -> str:
    """File name of a part of the kept pairs."""
    return f"pairs-{index:05d}.parquet"


def filtered_schema(values: Sequence[str]) -> pa.Schema:
    """`PREFERENCES`, and what the filter knows of each kept pair.

    `consistency`: c(g); `norm`: ||g||_2; `gap_<value>`: g_j, in units of s_j.
    """
    numbers = ["consistency", "norm", *(f"gap_{value}" for value in values)]
    return pa.schema([*PREFERENCES, *((name, pa.float64()) for name in numbers)])
