"""What came out of "How conflict matters", as a table and a figure."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from conflict_curve import STRONG, Curve, Difference, Level
from conflict_data import VALUES
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vcsoup_dist.plot_style import INK, LINES, plot_style

COLOURS, MARKERS = ("#1f62b0", "#d96b1f"), "os"
NUDGE = 0.012  # of the share, so that intervals of two curves do not cover each other
RULES = {"vc_soup": "cos ≥ 0", "strict": "both gaps ≥ 0 (cos ≥ 0.707)"}
ONE_SEED = "One seed: the intervals are of these data and policies, and say nothing of others."
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "svg.fonttype": "none",
    "svg.hashsalt": "conflict",
}


@dataclass(frozen=True)
class Kept:
    """What a filter leaves of one value's pairs at one share, mean over the seeds."""

    share: float
    method: str
    value: str
    kept: float
    """Share of the pairs."""
    conflicting: float
    """Share of the kept pairs that conflict."""


def markdown(
    curves: Sequence[Curve], levels: Sequence[Level], kept: Sequence[Kept], seeds: int, prompts: int
) -> str:
    """All tables, in the order of the questions."""
    lines = [
        f"Data and training of {seeds} seeds; {prompts} prompts; 95 % intervals in brackets.",
        *([ONE_SEED] if seeds == 1 else []),
        *(_of_curves(curves) if curves else []),
        "",
        "What methods reach: hypervolume less its bias, and mean rewards of the even mix:",
        "",
        *_table(["share", "method", "hypervolume", "of each seed", *VALUES], [
            [f"{each.share:g}", f"`{each.method}`", f"{each.hypervolume:.3f}",
             " ".join(f"{one:.3f}" for one in each.by_seed),
             *(f"{each.even_mix[value]:.3f}" for value in VALUES)]
            for each in levels
        ]),
        *(_of_filters(kept) if kept else []),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _of_curves(curves: Sequence[Curve]) -> Iterator[str]:
    heads = [_title(curve) for curve in curves]
    rows = list(zip(*(curve.points for curve in curves), strict=True))
    yield from (
        "",
        "Difference of hypervolumes on the fixed scale. The intervals of a column's shares hold "
        "together; those of its mean and slope each for itself:",
        "",
        *_table(["share of conflicting pairs", *heads], [
            *([f"{row[0].share:g}", *(_text(each.hypervolume) for each in row)] for row in rows),
            *_whole_curves(curves),
        ]),
        "",
        "Difference on the scale that each share's own report would take:",
        "",
        *_table(["share", *heads], [
            [f"{row[0].share:g}", *(_text(each.own_scale) for each in row)] for row in rows
        ]),
        "",
        "The even mix, weights (0.5, 0.5): difference of the mean reward, in its own units; each "
        "interval for itself:",
        "",
        *_table(["share", "value", *heads], [
            [f"{row[0].share:g}", value, *(_text(each.even_mix[value]) for each in row)]
            for row in rows
            for value in VALUES
        ]),
    )  # fmt: skip


def _of_filters(kept: Sequence[Kept]) -> Iterator[str]:
    yield from (
        "",
        "What the filters keep, and how much of it conflicts:",
        "",
        *_table(["share", "method", "value", "kept", "of these conflicting"], [
            [f"{each.share:g}", f"`{each.method}`", each.value, f"{each.kept:.1%}",
             f"{each.conflicting:.1%}"]
            for each in kept
        ]),
    )  # fmt: skip


def figure(curves: Sequence[Curve]) -> bytes:
    """SVG: a panel for each filter, a line for each method that it is compared with."""
    with plot_style(STYLE):
        drawn = Figure(figsize=(7.2, 3.2), layout="constrained")
        panels = drawn.subplots(1, len(RULES), sharey=True)
        for (method, rule), axes in zip(RULES.items(), panels, strict=True):
            own = [curve for curve in curves if curve.first == method]
            _draw(axes, own)
            axes.set_title(f"{method}: {rule}", fontsize=9, loc="left", color=INK)
            axes.set_xlabel("share of conflicting pairs")
        panels[0].set_ylabel("gain in hypervolume")
        out = io.BytesIO()
        drawn.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        return out.getvalue()


def _draw(axes: Axes, curves: Sequence[Curve]) -> None:
    axes.axhline(0, color=LINES, lw=0.9)
    for place, (curve, colour, marker) in enumerate(zip(curves, COLOURS, MARKERS, strict=True)):
        off = NUDGE * (place - 0.5)
        x = [point.share + off for point in curve.points]
        y = [point.hypervolume.value for point in curve.points]
        below = [point.hypervolume.value - point.hypervolume.low for point in curve.points]
        above = [point.hypervolume.high - point.hypervolume.value for point in curve.points]
        axes.errorbar(x, y, yerr=[below, above], color=colour, marker=marker, ms=4.5, lw=1.5,
                      elinewidth=1, capsize=2, label=f"over {curve.second}")  # fmt: skip
    axes.set_xticks([point.share for point in curves[0].points])
    axes.legend(fontsize=8, loc="best")


def _whole_curves(curves: Sequence[Curve]) -> Iterator[list[str]]:
    whole = {
        f"mean from {STRONG:g} on": [curve.strong_conflict for curve in curves],
        "slope, per unit of share": [curve.slope for curve in curves],
    }
    for name, found in whole.items():
        known = [each for each in found if each is not None]
        if known:
            yield [name, *map(_text, known)]


def _title(curve: Curve) -> str:
    return f"`{curve.first}` − `{curve.second}`"


def _text(found: Difference) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]".replace("-", "−")


def _table(heads: Sequence[str], rows: Sequence[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "| " + " | ".join("---" for _ in heads) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
