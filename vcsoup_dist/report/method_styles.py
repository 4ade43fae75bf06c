"""The colour and the marker of a method in every plot and table."""

from __future__ import annotations

from dataclasses import dataclass

from vcsoup_dist.records.summary import Summary

COLOURS = ("#1f62b0", "#d96b1f", "#2f9163", "#8c56a8", "#b08d1a", "#7a818c")
"""Distinguishable with colour-blind eyes and in grey."""
MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("p", "⬟"))
"""In matplotlib's letters, and as text."""


@dataclass(frozen=True)
class MethodStyle:
    """How a method looks."""

    colour: str
    """`#rrggbb`."""
    marker: str
    """In matplotlib's letters."""
    sign: str
    """One character that looks like the marker."""


def method_styles(summary: Summary) -> dict[str, MethodStyle]:
    """The styles of the summary's methods by name, given by their order; distinct for up to 36."""
    styles = {}
    for place, each in enumerate(summary.methods):
        marker, sign = MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]
        styles[each.method] = MethodStyle(COLOURS[place % len(COLOURS)], marker, sign)
    return styles
