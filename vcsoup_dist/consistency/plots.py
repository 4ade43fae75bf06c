"""Plots of a filter: how consistent the pairs are, where their gaps lie, which values conflict."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from vcsoup_dist.consistency.comparison import lossless_threshold, safe_threshold
from vcsoup_dist.plot_style import INK, plot_style

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

POINTS = 4000  # per panel; more only blur
BINS = 40
PANEL = 3.2  # inches
KEPT, LEFT_OUT, ALERT = "#2a7f62", "#c9cdd2", "#b3423a"
COLOURS = {"all gaps > 0": KEPT, "all gaps < 0": ALERT, "mixed": "#9aa0a6"}
STYLE = {"legend.fontsize": 8}


def plot_consistency(
    path: Path, cosines: Array, kept: Mask, threshold: float | None, values: int
) -> None:
    """Histogram of c(g) [P] of all pairs and of the kept.

    Marked are the threshold, if there is one, and the bounds for N values: up to 1/sqrt(N) no
    threshold loses a pair whose gaps are all positive, from sqrt((N-1)/N) on none keeps a negative
    gap.
    """
    with plot_style(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        has_direction = ~np.isnan(cosines)
        for members, colour, name in (
            (has_direction, LEFT_OUT, "left out"),
            (has_direction & kept, KEPT, "kept"),
        ):
            counts, edges = np.histogram(cosines[members], bins=BINS, range=(-1, 1))
            axes.stairs(counts, edges, fill=True, color=colour, label=name)
        for position, name, dashes in _bounds(values):
            axes.axvline(position, color=INK, linewidth=1, linestyle=dashes, label=name)
        if threshold is not None:
            name = f"threshold {threshold:g}"
            axes.axvline(threshold, color=ALERT, linewidth=1.6, label=name)
        axes.set(xlabel="consistency cos(g, 1)", ylabel="pairs", xlim=(-1.02, 1.02))
        figure.legend(loc="outside lower left", ncols=2, columnspacing=2)
        _save(figure, path)


def plot_gaps(path: Path, gaps: Array, values: Sequence[str]) -> None:
    """Gaps [P, N] of each two values against each other, coloured by the signs of all N."""
    # Evenly spaced pairs, so that the same pairs are shown every time.
    shown = gaps[np.linspace(0, len(gaps) - 1, min(len(gaps), POINTS)).astype(int)]
    panels = list(itertools.combinations(range(len(values)), 2))
    with plot_style(STYLE):
        if not panels:  # a single value
            figure = Figure(figsize=(6.4, 4.2), layout="constrained")
            axes = figure.subplots()
            axes.hist(shown[:, 0], bins=BINS, color=KEPT)
            axes.set(xlabel=f"gap of {values[0]}", ylabel="pairs")
        else:
            figure = _gap_panels(shown, values, panels)
        _save(figure, path)


def plot_correlation(
    path: Path, correlation: Sequence[Sequence[float | None]], values: Sequence[str]
) -> None:
    """The correlation [N, N] of the values' gaps as a heat map with its numbers; None is a dash."""
    count = len(values)
    with plot_style(STYLE):
        side = 1.8 + 0.72 * count
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.subplots()
        numbers = np.array([[np.nan if c is None else c for c in row] for row in correlation])
        image = axes.imshow(np.ma.masked_invalid(numbers), cmap="RdBu", vmin=-1, vmax=1)
        for i, j in itertools.product(range(count), repeat=2):
            number = numbers[i, j]
            shown = "–" if math.isnan(number) else f"{number:.2f}".replace("-", "−")
            dark = not math.isnan(number) and abs(number) > 0.6
            axes.text(j, i, shown, ha="center", va="center", color="white" if dark else INK)
        axes.set_xticks(range(count), list(values), rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), list(values))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, shrink=0.8, label="correlation of gaps").outline.set_visible(False)
        _save(figure, path)


def _bounds(values: int) -> list[tuple[float, str, str]]:
    """(position, name, line style) of the thresholds that mean something for N values."""
    low, high = lossless_threshold(values), safe_threshold(values)
    if values == 1:
        return []
    if values == 2:
        return [(high, f"{high:.3f}: both gaps positive above, not below", "--")]
    return [
        (low, f"{low:.3f}: all-positive pairs lie above", ":"),
        (high, f"{high:.3f}: no negative gap above", "--"),
    ]


def _gap_panels(shown: Array, values: Sequence[str], panels: Sequence[tuple[int, int]]) -> Figure:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(columns * PANEL, 4.8), rows * PANEL + 0.4), layout="constrained")
    grid: list[Axes] = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    positive, negative = (shown > 0).all(axis=1), (shown < 0).all(axis=1)
    groups = dict(zip(COLOURS, (positive, negative, ~positive & ~negative), strict=True))
    for axes, (i, j) in zip(grid, panels, strict=False):
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.axvline(0, color=INK, linewidth=0.6)
        for name in ("mixed", "all gaps < 0", "all gaps > 0"):  # the rarer ones on top
            x, y = shown[groups[name], i], shown[groups[name], j]
            axes.scatter(x, y, s=6, alpha=0.5, linewidths=0, color=COLOURS[name])
        axes.set(xlabel=f"gap of {values[i]}", ylabel=f"gap of {values[j]}")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=5, linewidth=0, label=name)
        for name, colour in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3)
    return figure


def _save(figure: Figure, path: Path) -> None:
    # Without the library's version in it, the same numbers give the same bytes.
    figure.savefig(path, format="png", dpi=140, metadata={"Software": None})
