"""The items of one large JSON array, a few at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from vcsoup_dist.preferences.canonical import LONGEST
from vcsoup_dist.preferences.file_content import BOM
from vcsoup_dist.preferences.json_rows import TOO_DEEP, item

READ = 1 << 16  # characters
LONGEST_ITEM = 8 * LONGEST  # characters
BLANKS = " \t\r\n"


class Malformed(ValueError):
    """Text that is not a JSON array; what follows the fault is unknown."""


def is_array(file: io.BufferedReader) -> bool:
    """Whether a text begins as a JSON array does; a row of JSON Lines begins with a brace."""
    return file.peek(READ).removeprefix(BOM).lstrip().startswith(b"[")


def array_items(file: io.BufferedReader) -> Iterator[Any]:
    """The items of the array that a file holds, see `json_rows.item`; raises Malformed.

    Bytes that are not UTF-8 become lone surrogates in the item that they stand in.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    buffer = text.read(READ).lstrip()
    at, wanted, first = 1, READ, True
    while True:
        at = _skip_blanks(buffer, at)
        fault = "the array has no end"
        found, end = None, len(buffer)
        if first and buffer[at : at + 1] == "]":
            at += 1
            break
        try:
            found, end = item(buffer, at)
        except RecursionError:
            fault = TOO_DEEP
        except ValueError as error:
            fault = str(getattr(error, "msg", error))
        end = _skip_blanks(buffer, end)
        mark = buffer[end : end + 1]
        if mark:
            if mark not in ",]":
                raise Malformed(f"`{mark}` where a comma belongs")
            yield found
            at, wanted, first = end + 1, READ, False
            if mark == "]":
                break
        else:  # the item may continue beyond the buffer
            if len(buffer) - at >= LONGEST_ITEM:
                raise Malformed(f"an item of more than {LONGEST_ITEM:,} characters, or {fault}")
            more = text.read(wanted)
            if not more:
                raise Malformed(fault)
            buffer, at, wanted = buffer[at:] + more, 0, 2 * wanted
    if (buffer[at:] + text.read(READ)).strip():
        raise Malformed("text after the array's end")


def _skip_blanks(text: str, at: int) -> int:
    while text[at : at + 1] in BLANKS and at < len(text):
        at += 1
    return at
