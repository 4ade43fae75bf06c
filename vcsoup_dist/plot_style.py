"""One style for all plots: the same numbers give the same bytes, whatever the user's settings.

Plots are drawn on figures of their own, without pyplot, so that no window system takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib

INK = "#22262c"
LINES = "#8a909a"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINES,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINES,
    "ytick.color": LINES,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


@contextmanager
def plot_style(extra: dict[Any, Any]) -> Iterator[None]:
    """matplotlib's own defaults with `STYLE` and `extra` settings, instead of the user's."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | extra)
        yield
