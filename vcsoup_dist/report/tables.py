"""A summary as text: CSV to compute with, and a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from vcsoup_dist.records.summary import Cell, Row, Summary

AGAINST_START = {
    "difference": "difference", "difference_low": "low", "difference_high": "high",
    "win_rate": "win_rate", "win_rate_low": "win_low", "win_rate_high": "win_high",
}  # fmt: skip
"""Column -> field of what says how a row stands to theta_0."""


def as_csv(summary: Summary) -> str:
    """One line per row of the summary; numbers in full, empty where there is none.

    Columns: method (empty for theta_0), seeds, weight_<axis>, and for each value <value>,
    <value>_low, <value>_high, <value>_seed_spread, <value>_scaled, and against theta_0
    <value>_difference and <value>_win_rate with _low and _high; then on_front, on_method_front and
    balanced as 0 or 1.
    """
    per_value = ("mean", "low", "high", "seed_spread", "scaled")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([
        "method", "seeds", *(f"weight_{axis}" for axis in summary.axes),
        *(value if part == "mean" else f"{value}_{part}"
          for value in summary.values for part in (*per_value, *AGAINST_START)),
        "on_front", "on_method_front", "balanced",
    ])  # fmt: skip
    for index, row in enumerate(summary.rows):
        weights = row.weights or {}
        writer.writerow([
            row.method, " ".join(map(str, row.seeds)),
            *(weights.get(axis) for axis in summary.axes),
            *(each for value in summary.values
              for each in _numbers(row.cells[value], per_value)),
            int(row.on_front), int(row.on_method_front), int(index == summary.balanced),
        ])  # fmt: skip
    return out.getvalue()


def as_text(summary: Summary) -> str:
    """One line per row of the summary, as `table.txt` shows it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("soup")
    for value in summary.values:
        table.add_column(value, justify="right")
    table.add_column("")
    for index, row in enumerate(summary.rows):
        cells = [_with_interval(cell) for cell in row.cells.values()]
        badges = [
            "front" if row.on_front else "",
            "front of its method" if row.on_method_front and not row.on_front else "",
            "balanced" if index == summary.balanced else "",
        ]
        table.add_row(soup_label(row), *cells, ", ".join(badge for badge in badges if badge))
    out = io.StringIO()
    Console(file=out, width=60 + 30 * len(summary.values), highlight=False, markup=False).print(
        table
    )
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _numbers(cell: Cell, parts: Sequence[str]) -> list[float | None]:
    """A cell's columns: its own parts, then those against theta_0."""
    start = cell.against_start
    against = [start and getattr(start, part) for part in AGAINST_START.values()]
    return [getattr(cell, part) for part in parts] + against


def _with_interval(cell: Cell) -> str:
    if cell.low is None or cell.high is None:
        return f"{cell.mean:.3f}"
    return f"{cell.mean:.3f} [{cell.low:.3f}, {cell.high:.3f}]"


def soup_label(row: Row) -> str:
    """A row as a reader should see it."""
    return "theta_0" if row.weights is None else f"{row.method}: {mixture(row.weights, '.3g')}"


def mixture(weights: Mapping[str, float] | None, form: str) -> str:
    """`0.5 helpful + 0.5 harmless`, each weight as `form` says; those of 0 are left out."""
    parts = [f"{weight:{form}} {value}" for value, weight in (weights or {}).items() if weight]
    return " + ".join(parts) or "nothing"
