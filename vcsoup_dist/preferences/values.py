"""Values of rows: what they are, in words, and whether they hold anything."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from typing import Any

NOTHING = frozenset({"", "[]", "{}", "null", "None"})
"""Texts that hold nothing: lists and objects are often kept as their JSON."""
DEPTH = 8  # levels of a value that are looked into; what lies deeper counts as something


class Unread:
    """A cell that was not converted: nobody asked for its column, or it is damaged.

    `reason` says why a row that needs it is bad.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"<{self.reason}>"


def shown_names(names: Iterable[str]) -> str:
    """Names of columns on one line, however odd or many they are."""
    found = list(names)
    shown = [each if each.isprintable() and len(each) <= 60 else repr(each[:60]) for each in found]
    return ", ".join(shown[:40]) + (", …" if len(found) > 40 else "")


def kind_of(value: Any) -> str:
    """What a value is, as a reason says it; one of few texts."""
    if value is None:
        return "null"
    if isinstance(value, Unread):
        return value.reason
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        if not value:
            return "an empty list"
        if all(isinstance(each, str) for each in value):
            return "a list of texts"
        return "a list of parts" if is_parts(value) else "a list"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, int | float) or type(value).__name__ == "Decimal":
        return "a number"
    return f"of type {type(value).__name__}"


def is_parts(value: Any) -> bool:
    """Whether a value is a list of typed parts such as {"type": "text", "text": "…"}."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and "type" in each and "role" not in each for each in value)
    )


def is_empty(value: Any, depth: int = DEPTH) -> bool:
    """Whether nothing is in a value: nulls, blank texts, and lists and objects of these alone.

    NaN is what pandas has for null. False is nothing by itself, but a setting within an object.
    """
    if value is None or (value is False and depth == DEPTH):
        return True
    if isinstance(value, str):
        return not value or value.strip() in NOTHING
    if isinstance(value, float):
        return math.isnan(value)
    if depth and isinstance(value, dict):
        return all(is_empty(each, depth - 1) for each in value.values())
    if depth and isinstance(value, list | tuple):
        return all(is_empty(each, depth - 1) for each in value)
    return False


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, zero-width and control characters alone.

    Characters that this Unicode version does not know may show.
    """
    bare = text.strip()
    return not bare or not (bare[0].isprintable() or any(map(_shows, bare)))


def _shows(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Zs", "Zl", "Zp")
