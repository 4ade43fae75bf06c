"""The parquet files of `scores/<dataset>/<value>`: one per slice of pairs, and their summary."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.files import replacing, write_atomically
from vcsoup_dist.moments import moments

Array = NDArray[np.float64]

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("chosen", pa.float64()),
        ("rejected", pa.float64()),
        ("failure", pa.string()),
    ]
)
COUNTS = (b"truncated", b"truncated_responses", b"equal_pairs")  # metadata keys
ROUNDING = {"fp32": 1e-6, "bf16": 2e-3}
"""Of numbers that were computed so, the share that tells nothing: what two packs of the same text
may differ by. A reward whose deviation is no larger beside its size is constant."""
REASONS_COUNTED = 1000  # different ones; a reason may quote a text, so that no two are equal
REASONS_LISTED = 10


@dataclass(frozen=True)
class ScoreShard:
    """The rewards of P pairs, higher being better."""

    ids: list[str]
    chosen: Array
    """[P] float64, NaN where the pair has no reward."""
    rejected: Array
    """[P] float64, NaN where `chosen` is."""
    truncated: int = 0
    """Texts (at most 2 P) of which something was cut."""
    truncated_responses: int = 0
    """Those of them whose response alone was too long."""
    equal_pairs: int = 0
    """Pairs whose two texts are the same tokens to the reward model, so that their gap is 0."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Position of a pair without a reward -> why."""


def score_name(index: int, heldout: bool = False) -> str:
    """File name of the scores of training shard, or held-out slice, `index`."""
    return f"{'heldout' if heldout else 'shard'}-{index:05d}.parquet"


def write_scores(path: Path, shard: ScoreShard) -> None:
    """Write the file as one; a reader sees all of it or nothing."""
    failures = [shard.failures.get(i) for i in range(len(shard.ids))]
    columns = [shard.ids, shard.chosen, shard.rejected, pa.array(failures, pa.string())]
    table = pa.Table.from_arrays(columns, schema=SCHEMA)
    counts = (shard.truncated, shard.truncated_responses, shard.equal_pairs)
    metadata = {key: str(count).encode() for key, count in zip(COUNTS, counts, strict=True)}
    with replacing(path) as aside:
        pq.write_table(table.replace_schema_metadata(metadata), aside)


def read_scores(path: Path) -> ScoreShard:
    """The scores of one shard."""
    table = pq.read_table(path)
    cut, responses, equal = (int(table.schema.metadata[key]) for key in COUNTS)
    chosen, rejected = (table[name].to_numpy() for name in ("chosen", "rejected"))
    reasons = table["failure"].to_pylist()
    failures = {i: reason for i, reason in enumerate(reasons) if reason is not None}
    return ScoreShard(table["id"].to_pylist(), chosen, rejected, cut, responses, equal, failures)


def has_reward(path: Path) -> bool:
    """Whether any pair of a shard has a reward; reads no more than the file's statistics."""
    metadata = pq.read_metadata(path)
    failures = SCHEMA.names.index("failure")
    columns = [metadata.row_group(i).column(failures) for i in range(metadata.num_row_groups)]
    return sum(int(column.statistics.null_count) for column in columns) > 0


def write_summary(
    folder: Path,
    shards: Sequence[Path],
    heldout: Sequence[Path],
    rounding: float = ROUNDING["fp32"],
) -> dict[str, Any]:
    """Write manifest.json over all score files of a product, and return it.

    The statistics are of the training shards' pairs that have a reward: `mean` and `std` (ddof = 0)
    over chosen and rejected pooled, None where no pair has one; `constant`: no two rewards differ
    but by `rounding`, a share of their size. `unscored` and `reasons` count the pairs without a
    reward, held-out ones among them; `equal_pairs` those of the others whose two texts are the same
    tokens.
    """
    rewards = _Statistics()
    missing = _Missing()
    truncated = responses = equal = 0
    listed: list[dict[str, Any]] = []
    for path in shards:
        shard = read_scores(path)
        rewards.add(np.concatenate([shard.chosen, shard.rejected]))
        missing.add(shard)
        truncated += shard.truncated
        responses += shard.truncated_responses
        equal += shard.equal_pairs
        listed.append({"file": path.name, "rows": len(shard.ids)})
    listed_heldout = []
    for path in heldout:
        shard = read_scores(path)
        missing.add(shard)
        listed_heldout.append({"file": path.name, "rows": len(shard.ids)})
    manifest = {
        "rows": sum(each["rows"] for each in listed),
        "unscored": missing.count,
        "reasons": dict(missing.reasons.most_common(REASONS_LISTED)),
        "first_unscored": missing.first,
        "truncated": truncated,
        "truncated_responses": responses,
        "scored": rewards.count() // 2,
        "equal_pairs": equal,
        **rewards.summary(rounding),
        "shards": listed,
        "heldout": listed_heldout,
    }
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return manifest


class _Statistics:
    """Mean, deviation and range of numbers that come in parts; those that are NaN do not count."""

    def __init__(self) -> None:
        self.moments = moments(np.empty((0, 1)))
        self.lowest, self.highest = math.inf, -math.inf

    def add(self, numbers: Array) -> None:
        numbers = numbers[~np.isnan(numbers)]
        self.moments = self.moments.merged(moments(numbers[:, None]))
        self.lowest = min(self.lowest, float(numbers.min(initial=math.inf)))
        self.highest = max(self.highest, float(numbers.max(initial=-math.inf)))

    def count(self) -> int:
        return int(self.moments.count[0])

    def summary(self, rounding: float) -> dict[str, Any]:
        found: dict[str, Any] = {"rounding": rounding}
        if not self.count():
            return found | dict.fromkeys(("mean", "std", "min", "max")) | {"constant": False}
        mean, std = float(self.moments.mean[0]), float(self.moments.std()[0])
        alike = self.lowest == self.highest or std <= rounding * math.hypot(mean, std)
        return found | {
            "mean": mean,
            "std": std,
            "min": self.lowest,
            "max": self.highest,
            "constant": alike,
        }


class _Missing:
    """Counts pairs without a reward, and why they have none."""

    def __init__(self) -> None:
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self.first: dict[str, str] | None = None

    def add(self, shard: ScoreShard) -> None:
        self.count += len(shard.failures)
        self._count_reasons(shard.failures.values())
        if self.first is None and shard.failures:
            position, reason = next(iter(shard.failures.items()))
            self.first = {"id": shard.ids[position], "reason": reason}

    def _count_reasons(self, reasons: Iterable[str]) -> None:
        for reason in reasons:
            known = reason in self.reasons or len(self.reasons) < REASONS_COUNTED
            self.reasons[reason if known else "another reason"] += 1
