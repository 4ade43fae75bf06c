"""Records as JSON: a dataclass with a `VERSION`, written and read in one way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_atomically


class Record(Protocol):
    """A dataclass of JSON types, other dataclasses and recipe sections."""

    VERSION: ClassVar[int]
    """Raised when a reader of the version before would misread the file."""


R = TypeVar("R", bound=Record)


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically, with its version."""
    content = TypeAdapter(type(record)).dump_python(record, mode="json")
    write_atomically(path, json.dumps({"version": record.VERSION, **content}, indent=1) + "\n")


def read_record(path: Path, kind: type[R]) -> R:
    """Read a record; UserError where the file is damaged or of another version.

    Keys that the dataclass does not have are ignored. Raises FileNotFoundError.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); remove its folder and run again") from None
    version: Any = content.get("version") if isinstance(content, dict) else None
    if version != kind.VERSION:
        found = "has no version" if version is None else f"has version {version!r}"
        raise UserError(
            f"{path}: {found}, and this vcsoup_dist reads version {kind.VERSION}; remove its "
            "folder and run again, or use the vcsoup_dist that wrote it"
        )
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: damaged ({where}: {first['msg']}); remove its folder and run again"
        ) from None
