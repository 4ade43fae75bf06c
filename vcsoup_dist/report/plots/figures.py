"""The plots of a summary as PNG bytes: the same summary gives the same bytes.

Drawn on figures of their own, without pyplot, so that neither a window system nor the
user's matplotlibrc has any effect. Wide enough for 720 CSS pixels at twice their resolution.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vcsoup_dist.plot_style import INK, plot_style
from vcsoup_dist.records.summary import Summary
from vcsoup_dist.report.method_styles import method_styles
from vcsoup_dist.report.plots.front_panel import draw_front

WIDTH = 7.2  # inches
DPI = 200
STYLE = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": "#eceef1",
    "grid.linewidth": 0.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def front_plot(summary: Summary) -> bytes:
    """Every row's mean rewards with its interval; a line through each method's non-dominated rows.

    One panel per pair of values; with more than one panel, a panel's line and its strong markers
    are those not dominated in its two values. Hollow markers are dominated in all values. A
    ring: the balanced row; a star: theta_0. Labels name the weights on the common front and
    the first method's policies.
    """
    pairs: list[tuple[str, str | None]] = list(combinations(summary.values, 2))
    pairs = pairs or [(summary.values[0], None)]
    columns = min(3, len(pairs))
    lines = -(-len(pairs) // columns)
    with plot_style(STYLE):
        height = 4.9 if len(pairs) == 1 else 0.5 + 2.6 * lines
        height = height if pairs[0][1] is not None else 1.5 + 0.35 * len(summary.methods)
        figure, grid = new_figure(lines, columns, height)
        _legend(figure, summary)
        for axes, (x, y) in zip(grid.flat, pairs, strict=False):
            draw_front(axes, summary, x, y, alone=len(pairs) == 1)
        for axes in grid.flat[len(pairs) :]:
            axes.set_visible(False)
        return png_of(figure)


def hypervolume_plot(summary: Summary) -> bytes:
    """One bar per method: its hypervolume less its bias, with its interval; a dot per seed."""
    methods, styles = summary.methods, method_styles(summary)
    with plot_style(STYLE):
        figure, grid = new_figure(1, 1, 0.75 + 0.42 * len(methods))
        axes = grid[0, 0]
        for place, method in enumerate(methods):
            colour = styles[method.method].colour
            axes.barh(place, method.corrected, height=0.62, color=colour, alpha=0.85)
            seeds = list(method.hypervolume_by_seed.values())
            if len(seeds) > 1:
                axes.plot(seeds, [place] * len(seeds), "o", ms=4.5, mfc="white", mec=INK, mew=0.9)
            text, ends = f"{method.corrected:.3f}", [method.corrected, *seeds]
            low, high = method.hypervolume_low, method.hypervolume_high
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=INK, lw=1.2)
                text, ends = f"{text} [{low:.3f}, {high:.3f}]", [*ends, high]
            axes.annotate(text, (max(ends), place), (7, 0), va="center",
                          textcoords="offset points", fontweight="bold")  # fmt: skip
        axes.set_yticks(range(len(methods)), [method.method for method in methods])
        axes.invert_yaxis()
        axes.set_xlabel("hypervolume of the scaled values above the reference point")
        axes.margins(x=0.3)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        return png_of(figure)


def edge_plot(summary: Summary) -> bytes:
    """Rewards along every line between two policies (solid) against the straight line (dashed).

    Shaded: where the rewards lie by the band of their drop. Wholly below the line it is a barrier.

    One row of panels per pair of policies, one column per value. ValueError without an edge.
    """
    pairs = list(dict.fromkeys((edge.start, edge.end) for edge in summary.edges))
    if not pairs:
        raise ValueError("the summary has no edge to plot")
    styles = method_styles(summary)
    with plot_style(STYLE):
        columns = len(summary.values)
        figure, grid = new_figure(len(pairs), columns, 0.7 + 2.2 * len(pairs))
        for edge in summary.edges:
            style = styles[edge.method]
            panels = grid[pairs.index((edge.start, edge.end))]
            for axes, value in zip(panels, summary.values, strict=True):
                line, drop = np.array(edge.line[value]), edge.drop[value]
                axes.fill_between(
                    edge.positions, line - [0, *drop.high, 0], line - [0, *drop.low, 0],
                    color=style.colour, alpha=0.12, lw=0,
                )  # fmt: skip
                axes.plot(edge.positions, line, "--", color=style.colour, lw=1, alpha=0.7)
                axes.plot(edge.positions, edge.rewards[value], color=style.colour, lw=1.6,
                          marker=style.marker, ms=3.6, mec="white", mew=0.5)  # fmt: skip
        for (start, end), line in zip(pairs, grid, strict=True):
            for axes, value in zip(line, summary.values, strict=True):
                axes.set_title(f"{value} reward", fontsize=9, loc="left", color=INK)
                axes.set_xticks([0, 0.5, 1], [start, "", end])
                axes.get_xticklabels()[0].set_horizontalalignment("left")
                axes.get_xticklabels()[-1].set_horizontalalignment("right")
        handles = [
            Line2D([], [], color=style.colour, marker=style.marker, ms=4, label=method)
            for method, style in styles.items()
            if any(edge.method == method for edge in summary.edges)
        ]
        handles.append(Line2D([], [], color=INK, ls="--", lw=1, label="straight line"))
        _above(figure, handles)
        return png_of(figure)


def _legend(figure: Figure, summary: Summary) -> None:
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, ms=6, lw=1.4, label=method)
        for method, style in method_styles(summary).items()
    ]
    if any(row.method is None for row in summary.rows):
        start = Line2D([], [], color=INK, marker="*", ms=10, lw=0, label="θ₀, before training")
        handles.append(start)
    handles.append(Line2D([], [], color=INK, marker="o", ms=10, mfc="none", lw=0, label="balanced"))
    _above(figure, handles)


def _above(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend above the axes, on one line where it fits."""
    letters = sum(len(str(handle.get_label())) + 7 for handle in handles)
    figure.legend(handles=handles, loc="outside upper left", columnspacing=1.4, handlelength=1.7,
                  ncols=len(handles) if letters < 112 else 3)  # fmt: skip


def new_figure(lines: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure as wide as the page, `height` inches high, and its axes [lines, columns]."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(lines, columns, squeeze=False)


def png_of(figure: Figure) -> bytes:
    """The figure's bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()
