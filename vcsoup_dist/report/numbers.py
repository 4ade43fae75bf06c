"""Numbers as a reader should see them."""

from __future__ import annotations

import math


def number(value: float | int | str | None, decimals: int | None = None) -> str:
    """A number with a true minus sign; without `decimals` whole or four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if decimals is not None:
        return fixed(value, decimals)
    if isinstance(value, int):
        shown = f"{value:,}"
    else:
        shown = f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return shown.replace("-", "−")


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals, a true minus sign, and no negative zero."""
    shown = f"{value:.{decimals}f}"
    shown = shown.lstrip("-") if float(shown) == 0 else shown
    return shown.replace("-", "−")


def decimals_for(span: float) -> int:
    """Decimals that show a range of `span` in three significant digits."""
    if not 0 < span < math.inf:
        return 2
    return min(9, max(0, 2 - math.floor(math.log10(span))))
