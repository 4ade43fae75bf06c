"""Training curves as PNG bytes: a row of panels per method, a column per metric."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from vcsoup_dist.plot_style import INK, plot_style
from vcsoup_dist.report.curves import SHOWN, Curve
from vcsoup_dist.report.method_styles import COLOURS
from vcsoup_dist.report.plots.figures import STYLE, new_figure, png_of


def curve_plot(curves: Sequence[Curve]) -> bytes:
    """Solid: pairs trained on. Dashed: held-out pairs. A colour per policy, whatever the seed.

    A method with more policies than colours has all in the first one. ValueError without a curve.
    """
    methods = list(dict.fromkeys(each.method for each in curves))
    if not methods:
        raise ValueError("there is no curve to plot")
    with plot_style(STYLE):
        figure, grid = new_figure(len(methods), len(SHOWN), 0.3 + 1.75 * len(methods))
        for method, row in zip(methods, grid, strict=True):
            own = [each for each in curves if each.method == method]
            policies = list(dict.fromkeys(each.policy for each in own))
            colours = COLOURS if len(policies) <= len(COLOURS) else COLOURS[:1] * len(policies)
            colour_of = dict(zip(policies, colours, strict=False))
            for name, axes in zip(SHOWN, row, strict=True):
                _draw(axes, own, name, colour_of)
            row[0].set_ylabel(method)
            _legend(row[0], colour_of, len(COLOURS))
        for name, axes in zip(SHOWN, grid[0], strict=True):
            axes.set_title(name, fontsize=9, loc="left", color=INK)
        for axes in grid[-1]:
            axes.set_xlabel("optimizer steps")
        return png_of(figure)


def _draw(axes: Axes, curves: Sequence[Curve], name: str, colours: dict[str, str]) -> None:
    for each in curves:
        colour = colours[each.policy]
        if name in each.train:
            axes.plot(*each.train[name], "-", color=colour, lw=1.1, alpha=0.8)
        if name in each.heldout:
            axes.plot(*each.heldout[name], "--", color=colour, lw=1, marker=".", ms=4, alpha=0.8)
    if not axes.lines:  # the objective has no such metric
        axes.set_visible(False)


def _legend(axes: Axes, colours: dict[str, str], most: int) -> None:
    if len(colours) > most:
        axes.text(0.98, 0.95, f"{len(colours)} policies", transform=axes.transAxes, ha="right",
                  va="top", fontsize=7)  # fmt: skip
        return
    handles = [Line2D([], [], color=colour, lw=1.4, label=name) for name, colour in colours.items()]
    axes.legend(handles=handles, fontsize=7, handlelength=1.2, loc="best")
