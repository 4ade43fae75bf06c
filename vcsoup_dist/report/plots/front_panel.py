"""One panel of the front plot: all rows in two values."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from vcsoup_dist.plot_style import INK
from vcsoup_dist.records.summary import Row, Summary
from vcsoup_dist.report.method_styles import MethodStyle, method_styles
from vcsoup_dist.report.plots.labels import Label, Point, place_labels
from vcsoup_dist.report.statistics import fronts

THETA_0 = MethodStyle(INK, "*", "★")


def short_name(row: Row) -> str:
    """theta_0's sign, the value of a pure policy, or the weights as `0.3/0.7`."""
    if row.weights is None:
        return "θ₀"
    if row.policy is not None:
        return row.policy
    return "/".join(f"{weight:.2g}" for weight in row.weights.values())


def draw_front(axes: Axes, summary: Summary, x: str, y: str | None, *, alone: bool) -> None:
    """Rows as points of the values `x` and `y`; without `y` one method above the other.

    `alone`: there is no other panel, which leaves space for large markers and all labels.
    """
    names = [method.method for method in summary.methods]
    styles = method_styles(summary)
    size = 6.5 if alone else 4.5

    def at(row: Row) -> Point:
        level = names.index(row.method) if row.method is not None else -1
        return row.cells[x].mean, row.cells[y].mean if y is not None else float(level)

    lines = []
    strong = {i for i, row in enumerate(summary.rows) if alone or row.method is None}
    for method in summary.methods:
        if y is not None:
            points = np.array([at(summary.rows[i]) for i in method.rows])
            shown = fronts.nondominated(points)
            strong |= {i for i, on in zip(method.rows, shown, strict=True) if on}
            lines.append(_from_left(points[shown]))
            colour = styles[method.method].colour
            axes.plot(*lines[-1].T, color=colour, lw=1.4, alpha=0.8, zorder=2)
    for i, row in enumerate(summary.rows):
        style = styles.get(row.method or "", THETA_0)
        axes.errorbar(*at(row), xerr=_whisker(row, x), yerr=_whisker(row, y), fmt="none",
                      ecolor=style.colour, elinewidth=0.9, alpha=0.22 if i in strong else 0.1,
                      zorder=1)  # fmt: skip
        _draw_marker(axes, row, at(row), style, size, faint=i not in strong)
    balanced = summary.rows[summary.balanced]
    axes.plot(*at(balanced), "o", ms=2.2 * size, mfc="none", mec=INK, mew=1.2, zorder=4)
    axes.margins(0.1)
    axes.set_xlabel(f"{x} reward")
    if y is None:
        axes.set_yticks(range(-1, len(names)), ["θ₀", *names])
        axes.invert_yaxis()
        return
    axes.set_ylabel(f"{y} reward")
    widths = [2.3 * size if row is balanced else size for row in summary.rows]
    labels = [
        Label(at(row), short_name(row), styles[row.method].colour, width / 2 + 1.5)
        for row, width in zip(summary.rows, widths, strict=True)
        if row.method is not None
        and ((alone and row.on_front) or (row.method == names[0] and row.policy is not None))
    ]
    labels.sort(key=lambda label: "/" in label.text)  # the policies choose first
    markers = [(at(row), width) for row, width in zip(summary.rows, widths, strict=True)]
    place_labels(axes, labels, markers, lines)


def _draw_marker(
    axes: Axes, row: Row, at: Point, style: MethodStyle, size: float, *, faint: bool
) -> None:
    """Hollow where the row is not on its method's front."""
    hollow = row.method is not None and not row.on_method_front
    axes.plot(
        *at, ls="", marker=style.marker, ms=2 * size if row.method is None else size,
        mfc="white" if hollow else style.colour, mec=style.colour, mew=0.17 * size,
        alpha=0.35 if faint else 1, zorder=2.4 if hollow or faint else 3,
    )  # fmt: skip


def _whisker(row: Row, value: str | None) -> list[list[float]] | None:
    """Its lengths below and above the mean, where it has an interval."""
    if value is None:
        return None
    cell = row.cells[value]
    if cell.low is None or cell.high is None:
        return None
    return [[max(0.0, cell.mean - cell.low)], [max(0.0, cell.high - cell.mean)]]


def _from_left(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points [V, 2] of a front from left to right."""
    return line[np.lexsort((-line[:, 1], line[:, 0]))]
