"""What Python callers give: strings or paths, rows of numbers of any kind; or a clear TypeError."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Folder = str | os.PathLike[str]
"""Where a directory is."""


def as_path(value: Any, name: str) -> Path:
    """TypeError for what is not a path; name: of the argument."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path or a string, got {_kind(value)}")
    return Path(os.fsdecode(value))


def as_paths(value: Any, name: str) -> list[Path]:
    """TypeError for a single path too: of its letters each would be one."""
    if isinstance(value, (str, bytes, os.PathLike)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of paths or strings, got {_kind(value)}")
    return [as_path(each, f"{name}[{place}]") for place, each in enumerate(value)]


def as_row(value: Any, name: str) -> tuple[float, ...]:
    """Numbers, of numpy and torch too."""
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of numbers, got {_kind(value)}")
    return tuple(_number(each, f"{name}[{place}]") for place, each in enumerate(value))


def as_rows(value: Any, name: str) -> list[tuple[float, ...]]:
    """Rows of numbers; a single row may be given by itself."""
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be rows of numbers, got {_kind(value)}")
    rows = list(value)
    if rows and not any(_is_row(each) for each in rows):
        return [as_row(rows, name)]
    return [as_row(each, f"{name}[{place}]") for place, each in enumerate(rows)]


def as_bytes(value: Any, name: str) -> int:
    """A whole number of bytes; TypeError for `"1GiB"`, which only the command reads."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number of bytes, got {_kind(value)}")
    return value


def _is_row(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or bool(getattr(value, "ndim", 0))


def _number(value: Any, name: str) -> float:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {_kind(value)}") from None


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
