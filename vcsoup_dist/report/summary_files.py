"""A summary as JSON and as CSV, for those who go on computing with it."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

from vcsoup_dist.report.summary import Summary


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary field by field, in JSON's own types; every number is finite.

    Seeds become strings, as JSON's keys must be; a missing number is None.
    """
    plain: dict[str, Any] = _plain(asdict(summary))
    return plain


def as_csv(summary: Summary) -> str:
    """One line per row of the summary; numbers in full, empty where there is none.

    Columns: method (empty for theta_0), seeds, weight_<axis>, and for each value <value>,
    <value>_low, <value>_high, <value>_seed_spread, <value>_scaled; then on_front,
    on_method_front and balanced as 0 or 1.
    """
    per_value = ("mean", "low", "high", "seed_spread", "scaled")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([
        "method", "seeds", *(f"weight_{axis}" for axis in summary.axes),
        *(value if part == "mean" else f"{value}_{part}"
          for value in summary.values for part in per_value),
        "on_front", "on_method_front", "balanced",
    ])  # fmt: skip
    for index, row in enumerate(summary.rows):
        weights = row.weights or {}
        writer.writerow([
            row.method, " ".join(map(str, row.seeds)),
            *(weights.get(axis) for axis in summary.axes),
            *(getattr(row.cells[value], part) for value in summary.values for part in per_value),
            int(row.on_front), int(row.on_method_front), int(index == summary.balanced),
        ])  # fmt: skip
    return out.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
