"""The colour and the mark that a method bears in every plot and table."""

from __future__ import annotations

COLOURS = ("#1f62b0", "#d96b1f", "#2f9163", "#8c56a8", "#b08d1a", "#7a818c")
"""One per method, in the summary's order; distinguishable with colour-blind eyes and in grey."""
MARKERS = "os^Dvp"
"""In matplotlib's letters."""
SIGNS = "●■▲◆▼⬟"
"""The same marks as text."""


def colour_of(place: int) -> str:
    """Colour of the summary's method number `place`, as `#rrggbb`."""
    return COLOURS[place % len(COLOURS)]


def marker_of(place: int) -> str:
    """Matplotlib's marker of the summary's method number `place`."""
    return MARKERS[place % len(MARKERS)]


def sign_of(place: int) -> str:
    """One character that looks like the marker."""
    return SIGNS[place % len(SIGNS)]
