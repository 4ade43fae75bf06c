"""Candidates that add no volume: they are not above the reference point in every value."""

from __future__ import annotations

from vcsoup_dist.records.summary import Row, Scale, Summary


def below_reference(summary: Summary) -> list[str]:
    """Every method that has some, and how many, such as `random (1 of 3)`; by their means."""
    found = []
    for method in summary.methods:
        rows = [summary.rows[i] for i in method.rows]
        if count := sum(_is_below(row, summary.scale) for row in rows):
            found.append(f"{method.method} ({count} of {len(rows)})")
    return found


def _is_below(row: Row, scale: Scale) -> bool:
    return any(cell.scaled <= scale.reference_scaled[value] for value, cell in row.cells.items())
