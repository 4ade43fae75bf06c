"""A summary as text: CSV to compute with, a table and a few lines for the terminal."""

from __future__ import annotations

import csv
import io

from vcsoup_dist.records.summary import Row, Summary


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
        cells = [f"{c.mean:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in row.cells.values()]
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


def headline(summary: Summary) -> list[str]:
    """The result in a few lines for the terminal."""
    lines = [
        f"hypervolume of {each.method}: {each.hypervolume:.4f}"
        + (f" ± {each.hypervolume_spread:.4f} over seeds" if each.hypervolume_spread else "")
        for each in summary.methods
    ]
    reference = ", ".join(f"{value} {x:.4g}" for value, x in summary.scale.reference.items())
    lines.append(f"(of values scaled to 0..1 over all rows; reference point: {reference})")
    best = summary.rows[summary.balanced]
    lines.append(f"most balanced: {soup_label(best)}")
    return lines


def soup_label(row: Row) -> str:
    """A row as a reader should see it."""
    if row.weights is None:
        return "theta_0"
    parts = [f"{weight:.3g} {value}" for value, weight in row.weights.items() if weight]
    return f"{row.method}: {' + '.join(parts)}"
