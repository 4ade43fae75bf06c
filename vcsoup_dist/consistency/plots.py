"""Pictures of a filter: how consistent the pairs are, and where their gaps lie."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

POINTS = 4000  # per panel; more only blur
PANEL = 3.6  # inches
COLOURS = {"all gaps > 0": "#2a7f62", "all gaps < 0": "#b3423a", "mixed": "#9aa0a6"}


def plot_consistency(path: Path, cosines: Array, kept: Mask, threshold: float | None) -> None:
    """Histogram of c(g) [P] of all pairs and of the kept, with the threshold if there is one."""
    figure, (axes,) = _figure(1)
    bins = np.linspace(-1, 1, 41).tolist()
    has_direction = ~np.isnan(cosines)
    axes.hist(cosines[has_direction], bins=bins, color="#c9cdd2", label="all pairs")
    axes.hist(cosines[has_direction & kept], bins=bins, color="#2a7f62", label="kept")
    if threshold is not None:
        axes.axvline(threshold, color="#b3423a", linewidth=1.2, label=f"threshold {threshold:g}")
    axes.set(xlabel="consistency cos(g, 1)", ylabel="pairs", xlim=(-1, 1))
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_gaps(path: Path, gaps: Array, values: Sequence[str]) -> None:
    """Gaps [P, N] of each two values against each other, coloured by the signs of all N."""
    panels = list(itertools.combinations(range(len(values)), 2))
    columns = min(3, max(1, len(panels)))
    figure, grid = _figure(max(1, len(panels)), columns)
    # Evenly spaced pairs, so that the same pairs are shown every time.
    shown = gaps[np.linspace(0, len(gaps) - 1, min(len(gaps), POINTS)).astype(int)]
    positive, negative = (shown > 0).all(axis=1), (shown < 0).all(axis=1)
    groups = dict(zip(COLOURS, (positive, negative, ~positive & ~negative), strict=True))
    for axes, (i, j) in zip(grid, panels, strict=False):
        for name, members in groups.items():
            x, y = shown[members, i], shown[members, j]
            axes.scatter(x, y, s=5, alpha=0.5, linewidths=0, color=COLOURS[name], label=name)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set(xlabel=f"gap of {values[i]}", ylabel=f"gap of {values[j]}")
    if panels:
        grid[0].legend(frameon=False, fontsize=7, markerscale=2)
    else:  # a single value
        grid[0].hist(shown[:, 0], bins=40, color="#2a7f62")
        grid[0].set(xlabel=f"gap of {values[0]}", ylabel="pairs")
    _save(figure, path)


def _figure(panels: int, columns: int = 1) -> tuple[Figure, list[Axes]]:
    rows = -(-panels // columns)
    figure = Figure(figsize=(max(columns * PANEL, 4.8), rows * PANEL), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[panels:]:
        axes.set_visible(False)
    return figure, grid


def _save(figure: Figure, path: Path) -> None:
    # Without the library's version in it, the same numbers give the same bytes.
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
