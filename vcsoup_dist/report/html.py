"""The small pieces of HTML that the report is made of. Whatever is not `Html` is escaped here."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NewType

from vcsoup_dist.report.method_styles import colour_of, sign_of

UNFIT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Controls that are no HTML, and lone surrogates, which no file can hold."""

Html = NewType("Html", str)
"""Markup that is safe to show."""


def text(anything: object) -> Html:
    """Any text, escaped."""
    return Html(html.escape(UNFIT.sub("\N{REPLACEMENT CHARACTER}", str(anything)), quote=True))


def join(parts: Iterable[Html], between: str = "") -> Html:
    """Markup one after the other, with plain text between."""
    return Html(text(between).join(parts))


def tag(name: str, *inside: Html, css: str = "") -> Html:
    """An element with an optional class."""
    attributes = f' class="{text(css)}"' if css else ""
    return Html(f"<{name}{attributes}>{''.join(inside)}</{name}>")


def paragraph(*inside: Html, css: str = "") -> Html:
    """A paragraph."""
    return tag("p", *inside, css=css)


def section(name: str, title: str, *inside: Html) -> Html:
    """A section with a heading that `#name` leads to."""
    heading = f'<section id="{text(name)}">\n<h2>{text(title)}</h2>\n'
    return Html(heading + "\n".join(inside) + "\n</section>")


def cell(inside: Html, css: str = "", *, head: bool = False, span: int = 1) -> Html:
    """A table cell."""
    name = "th" if head else "td"
    attributes = f' class="{text(css)}"' if css else ""
    attributes += f' colspan="{span}"' if span > 1 else ""
    return Html(f"<{name}{attributes}>{inside}</{name}>")


def table(head: Sequence[Html], bodies: Sequence[Sequence[Html]], css: str = "") -> Html:
    """A table of ready head cells and, for each body, ready `<tr>` rows."""
    groups = "\n".join(f"<tbody>\n{chr(10).join(rows)}\n</tbody>" for rows in bodies if rows)
    return Html(
        f'<div class="wide"><table class="{text(css)}">\n<thead><tr>{"".join(head)}</tr></thead>\n'
        f"{groups}\n</table></div>"
    )


def plain_table(head: Sequence[str], rows: Iterable[Sequence[Html]], numbers_from: int = 1) -> Html:
    """A table of titles and cells' contents; right-aligned from column `numbers_from` on."""

    def css(column: int) -> str:
        return "number" if column >= numbers_from else ""

    titles = [cell(text(title), css(i), head=True) for i, title in enumerate(head)]
    lines = [tag("tr", *(cell(inside, css(i)) for i, inside in enumerate(row))) for row in rows]
    return table(titles, [lines])


def picture(png: bytes, alternative: str, caption: Html) -> Html:
    """A PNG inside the page, shown at half its resolution, with a caption beneath."""
    data = base64.b64encode(png).decode("ascii")
    return Html(
        f'<figure><img alt="{text(alternative)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def method_name(method: str | None, place: int | None) -> Html:
    """A method with the mark it has in the plots, where it is in them; theta_0 for None."""
    if method is None:
        return Html("★ θ₀, before training")
    if place is None:
        return text(method)
    mark = f'<span class="mark" style="color:{colour_of(place)}">{sign_of(place)}</span>'
    return Html(f"{mark} {text(method)}")


def soup_name(weights: Mapping[str, float] | None) -> Html:
    """`0.30 helpful + 0.70 harmless`, leaving out what weighs nothing; theta_0 for None."""
    if weights is None:
        return Html("θ₀")
    return text(" + ".join(f"{w:.2f} {axis}" for axis, w in weights.items() if w) or "nothing")


def number(value: float | int | str | None, decimals: int | None = None) -> Html:
    """A number with a true minus sign; without `decimals` whole or four significant digits."""
    if value is None:
        return Html("–")
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        shown = f"{value:,}"
    elif decimals is None:
        shown = f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    else:
        shown = f"{value:.{decimals}f}"
        shown = shown.lstrip("-") if float(shown) == 0 else shown
    return text(shown.replace("-", "−"))


def decimals_for(span: float) -> int:
    """Decimals that show a range of `span` in three significant digits."""
    if not 0 < span < math.inf:
        return 2
    return min(9, max(0, 2 - math.floor(math.log10(span))))
