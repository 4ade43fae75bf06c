"""The figures of the study, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from contrasts import Contrast
from matplotlib.figure import Figure
from tables import JUDGES

from vcsoup_dist.plot_style import INK, LINES, plot_style
from vcsoup_dist.records.summary import Summary

SVG = {"svg.hashsalt": "study", "svg.fonttype": "path"}
COLOURS = ("#4c78a8", "#e45756", "#b5322f", "#8a909a", "#3f9b5b")


def write(
    planned: Mapping[str, Sequence[Contrast]],
    summaries: Mapping[str, Summary],
    methods: Sequence[str],
    folder: Path,
) -> None:
    """contrasts.svg and fronts.svg; the same numbers give the same bytes."""
    with plot_style(SVG):
        for name, figure in (
            ("contrasts", contrast_plot(planned)),
            ("fronts", front_plot(summaries, methods)),
        ):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def contrast_plot(found: Mapping[str, Sequence[Contrast]]) -> Figure:
    """A row per planned difference, a panel per judge."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (judge, rows) in zip(
        figure.subplots(1, len(found), sharey=True), found.items(), strict=True
    ):
        for place, row in enumerate(reversed(rows)):
            axes.plot([row.low, row.high], [place, place], color=INK, lw=1.4)
            axes.plot(row.difference, place, "o", color=INK, ms=5)
        labels = [f"{row.first} − {row.second}\n({row.kind})" for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), labels, fontsize=7)
        axes.axvline(0, color=LINES, lw=0.8)
        axes.set_title(JUDGES[judge], fontsize=9)
        axes.set_xlabel("difference in hypervolume")
    return figure


def front_plot(summaries: Mapping[str, Summary], methods: Sequence[str]) -> Figure:
    """Mean rewards of every candidate, a panel per judge."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (judge, summary) in zip(
        figure.subplots(1, len(summaries)), summaries.items(), strict=True
    ):
        x, y = summary.values
        for method, colour in zip(methods, COLOURS, strict=True):
            rows = [row for row in summary.rows if row.method == method]
            rows.sort(key=lambda row: list((row.weights or {}).values()))
            points = np.array([[row.cells[x].mean, row.cells[y].mean] for row in rows])
            axes.plot(*points.T, "o-", color=colour, ms=4, lw=1.2, label=method)
        start = next(row for row in summary.rows if row.method is None)
        axes.plot(start.cells[x].mean, start.cells[y].mean, "*", color=INK, ms=10, label="θ₀")
        axes.set_title(JUDGES[judge], fontsize=9)
        axes.set_xlabel(f"{x} reward")
        axes.set_ylabel(f"{y} reward")
    axes.legend(fontsize=7)
    return figure
