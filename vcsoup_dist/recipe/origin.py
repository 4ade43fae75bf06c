"""run.json: where the recipe of a run directory came from, so that its copy there can be used.

Its relative paths are those of the original, so the copy alone does not say what they mean.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.files import write_atomically
from vcsoup_dist.recipe.yaml_file import read_yaml

NAME = "run.json"


@dataclass(frozen=True)
class Origin:
    """The recipe that a run directory was last made by."""

    recipe: str
    """Its file's path."""
    from_here: str
    """The same from the run directory, for when both are moved together."""
    digest: str
    """Of the copy, as it was written."""


ORIGIN = TypeAdapter(Origin)


def note_origin(root: Path, recipe_file: Path, copy: str) -> None:
    """Write run.json, where it does not say so already."""
    origin = Origin(
        str(recipe_file), os.path.relpath(recipe_file, root.resolve()), _digest(copy.encode())
    )
    text = json.dumps(asdict(origin), indent=1) + "\n"
    file = root / NAME
    if not file.exists() or file.read_text() != text:
        write_atomically(file, text)


def read_origin(root: Path) -> Origin | None:
    """What run.json says; None where there is none: no run directory, or an old one."""
    try:
        return ORIGIN.validate_json((root / NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{root / NAME}: unreadable ({reason_of(error)}); remove it, and give the recipe itself"
            f" with --run-dir {root}"
        ) from error


def find_original(root: Path, origin: Origin) -> Path:
    """Where the recipe lies, or would: moved together with the run directory, or where it was."""
    name = _name_of(root / "recipe.yaml")
    beside = Path(os.path.normpath(root.resolve() / origin.from_here))
    if name is not None and _name_of(beside) == name:
        return beside
    return Path(origin.recipe)


def was_edited(root: Path, origin: Origin) -> bool:
    """Whether the copy is another than was written."""
    return _digest((root / "recipe.yaml").read_bytes()) != origin.digest


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _name_of(file: Path) -> object:
    try:
        return read_yaml(file, "recipe").content.get("name")
    except UserError:
        return None
