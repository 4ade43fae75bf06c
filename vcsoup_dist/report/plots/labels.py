"""Short labels next to the points of a plot, none of which covers another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

Point = tuple[float, float]

SIZE = 7.5  # of the letters, in points
PLACES = ((1, 1), (1, 0), (-1, -1), (1, -1), (-1, 1), (-1, 0), (0, 1), (0, -1))
"""Sides of a point, in the order in which they are tried."""


@dataclass(frozen=True)
class Label:
    """What to write next to a point, at least `gap` typographic points away."""

    point: Point
    text: str
    colour: str
    gap: float


def place_labels(
    axes: Axes,
    labels: Sequence[Label],
    markers: Sequence[tuple[Point, float]],
    lines: Sequence[NDArray[np.float64]],
) -> None:
    """Write each label next to its point; the first labels choose first.

    A label that on every side would cover a marker (centre, size in points), a line [V, 2] or an
    earlier label, or leave the axes, is left out. Points are in data coordinates.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout decides where the points are
    pixels = figure.dpi / 72
    taken = [_square(axes, point, size * pixels) for point, size in markers]
    strokes = [axes.transData.transform(_dense(line)) for line in lines]
    for label in labels:
        for right, up in PLACES:
            away = label.gap * (0.8 if right and up else 1.3)
            written = axes.annotate(
                label.text, label.point, (away * right, away * up),
                textcoords="offset points", fontsize=SIZE, color=label.colour, zorder=5,
                ha={1: "left", 0: "center", -1: "right"}[right],
                va={1: "bottom", 0: "center", -1: "top"}[up],
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
            box = written.get_window_extent()
            covers = any(box.overlaps(each) for each in taken)
            covers = covers or any(box.count_contains(stroke) for stroke in strokes)
            if _within(box.padded(2 * pixels), axes.bbox) and not covers:
                taken.append(box)
                break
            written.remove()


def _square(axes: Axes, point: Point, width: float) -> Bbox:
    x, y = axes.transData.transform(point)
    return Bbox.from_bounds(x - width / 2, y - width / 2, width, width)


def _dense(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """The line [V, 2] with so many points that no label fits between two of them."""
    at = np.arange(0, max(len(line) - 1, 0) + 1e-9, 0.02)
    return np.stack([np.interp(at, np.arange(len(line)), line[:, i]) for i in (0, 1)], axis=1)


def _within(box: Bbox, frame: Bbox) -> bool:
    return bool(
        frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    )
