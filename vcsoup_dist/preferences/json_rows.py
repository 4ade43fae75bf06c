"""Rows of JSON text: one object per line, or the items of an array; a bad one costs itself."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from vcsoup_dist.preferences.canonical import LONGEST
from vcsoup_dist.preferences.pair import BadRow, Row
from vcsoup_dist.preferences.values import shown_names

CUT = 500  # characters of a bad row that are kept for its reader
LONGEST_LINE = 8 * LONGEST  # bytes; room for a few long texts with their escapes
NOT_UTF8 = "not UTF-8"
TOO_DEEP = "JSON nested too deep"


def remedy(reason: str) -> str | None:
    """What to do with a file many of whose rows are bad for this reason, where that is known."""
    if reason == NOT_UTF8:
        return (
            "convert the file to UTF-8 (Latin-1, as Windows writes it: "
            "iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW)"
        )
    return None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise BadRow(f"the key `{shown_names([doubled])}` appears twice")
    return found


STRICT = json.JSONDecoder(object_pairs_hook=_unique)
LENIENT = json.JSONDecoder(parse_int=str)
"""Finds the end of an object that the other one refuses."""


def line_rows(file: io.BufferedReader) -> Iterator[tuple[int, Row | BadRow]]:
    """(line number from 1, row) of JSON Lines; blank lines are skipped."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if not line.strip():
            continue
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            reason = f"over-long: a line of more than {LONGEST_LINE:,} bytes"
            yield number, BadRow(reason, _shown(line))
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row = STRICT.decode(text.rstrip("\r\n"))
        except UnicodeDecodeError:
            yield number, BadRow(NOT_UTF8, _shown(line))
        except (ValueError, RecursionError, BadRow) as error:
            yield number, BadRow(_fault(error, line), _shown(line))
        else:
            is_row = isinstance(row, dict)
            yield number, row if is_row else BadRow("not a JSON object", _shown(line))


def item(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at a place of a text and where it ends; a BadRow stands for a bad object.

    Raises ValueError where it has no end, or RecursionError.
    """
    try:
        return STRICT.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except (ValueError, BadRow) as error:
        _, end = LENIENT.raw_decode(text, at)
        return BadRow(_fault(error, b"")), end


def _fault(error: Exception, line: bytes) -> str:
    """Why a line is not a row, in one of few texts."""
    if isinstance(error, BadRow):
        return error.reason
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if not isinstance(error, json.JSONDecodeError):
        return f"a number of more than {sys.get_int_max_str_digits():,} digits"
    if line.lstrip()[:2] == b"{'":
        return "malformed JSON: single quotes, as Python prints an object"
    if error.msg == "Extra data":
        if b"\r" in line.rstrip():
            return "malformed JSON: line ends of CR alone (\\r)"
        return "malformed JSON: more than one value in a line"
    return f"malformed JSON ({error.msg.removesuffix(' at')})"


def _shown(line: bytes) -> str:
    return line[: 4 * CUT].decode(errors="replace")
