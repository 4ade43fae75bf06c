"""Paragraphs, tables and code blocks in Markdown that reads well as plain text too."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Controls but for tab and newline, and lone surrogates, which no file can hold."""
DELETE = "\x7f"
WIDTH = 100


def wrapped(text: str) -> str:
    """A paragraph, or with `- ` in front a list item, in lines of at most 100 characters.

    Code between backticks stays on one line: `c > 0` must not begin one with a quote's mark.
    """
    glued = re.sub("`[^`]*`", lambda code: code.group().replace(" ", "\0"), text)
    indent = "  " if text.startswith("- ") else ""
    filled = textwrap.fill(
        glued, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace("\0", " ")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table with columns as wide as their widest cell; right-aligned after the first `texts`."""
    lines = [list(map(_cell, line)) for line in (head, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(head))]
    shown = [
        [
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = ["-" * width if i < texts else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (shown[0], rule, *shown[1:]))


def fenced(text: str) -> str:
    """Any text as a code block, so that nothing in it is taken for Markdown.

    Windows' line ends become newlines, and control characters their pictures: a terminal that
    shows the page obeys none of them.
    """
    visible = CONTROL.sub(_picture, text.replace("\r\n", "\n"))
    longest = max((len(run) for run in re.findall("`+", visible)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{visible}\n{fence}"


def _picture(found: re.Match[str]) -> str:
    control = found.group()
    if control < " ":
        return chr(0x2400 + ord(control))
    return "\N{SYMBOL FOR DELETE}" if control == DELETE else "\N{REPLACEMENT CHARACTER}"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def percent_of(part: int, whole: int) -> str:
    """A share such as `12.5 %`; a dash where there is no whole."""
    return percent(part / whole if whole else None)


def percent(share: float | None) -> str:
    """A share such as `12.5 %`; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f} %"
