"""The figures of the answers as text, and as CSV."""

from __future__ import annotations

import csv
import io

from vcsoup_dist.records.answer_figures import AnswerFigures
from vcsoup_dist.records.summary import Summary
from vcsoup_dist.report.answer_figures import answer_warnings
from vcsoup_dist.report.numbers import number
from vcsoup_dist.report.tables import soup_label


def answers_as_text(summary: Summary, figures: AnswerFigures) -> str:
    """One line per row of the summary, then warnings: the second part of `table.txt`."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("answers of")
    ratio = "KL to theta_0" if figures.is_kl else "log-ratio to theta_0"
    for title in ("tokens", "unfinished", "repeating", ratio):
        table.add_column(title, justify="right", no_wrap=True)
    for row, own in zip(summary.rows, figures.rows, strict=True):
        table.add_row(
            soup_label(row),
            f"{own.tokens:.1f}",
            f"{own.unfinished:.0%}",
            f"{own.repeating:.0%}",
            number(own.log_ratio, 2),
        )
    out = io.StringIO()
    width = 80 + 20 * len(summary.axes)
    Console(file=out, width=width, highlight=False, markup=False).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*lines, *answer_warnings(summary, figures)]) + "\n"


def answers_as_csv(summary: Summary, figures: AnswerFigures) -> str:
    """One line per row of the summary; numbers in full, empty where there is none.

    Columns: method (empty for theta_0), weight_<axis>, tokens, unfinished, repeating, log_ratio,
    log_ratio_error, is_kl, and for each value <value> and <value>_adjusted.
    """
    shown = ("tokens", "unfinished", "repeating", "log_ratio", "log_ratio_error")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([
        "method", *(f"weight_{axis}" for axis in summary.axes), *shown, "is_kl",
        *(name for value in summary.values for name in (value, f"{value}_adjusted")),
    ])  # fmt: skip
    for own in figures.rows:
        weights = own.weights or {}
        writer.writerow([
            own.method, *(weights.get(axis) for axis in summary.axes),
            *(getattr(own, name) for name in shown), int(figures.is_kl),
            *(x for value in summary.values for x in (own.rewards[value], own.adjusted[value])),
        ])  # fmt: skip
    return out.getvalue()
