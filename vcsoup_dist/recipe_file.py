"""Reading a recipe from YAML; every mistake becomes one line that names the key."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Recipe

Content = TypeVar("Content", bound=BaseModel)


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe; `${NAME}` in it is replaced from the environment.

    Raises UserError with one line per mistake, each naming the key's path.
    """
    recipe = load_section(path, Recipe, "recipe")
    recipe.resolve_paths_from(path.resolve().parent)
    return recipe


def load_section(path: Path, kind: type[Content], called: str) -> Content:
    """What a YAML file holds as a section of that kind, with the same errors as a recipe's."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the {called}: {error}") from error
    try:
        raw = yaml.safe_load(_from_environment(text, path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a {called} is a YAML mapping of keys")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [f"{path}: {line}" for line in _mistakes(error, kind)]
        raise UserError("\n".join(lines)) from error


def _from_environment(text: str, path: Path) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise UserError(f"{path}: ${{{name}}} is not set in the environment; export {name}=...")
        return os.environ[name]

    lines = text.splitlines()
    return "\n".join(
        line if line.lstrip().startswith("#") else re.sub(r"\$\{(\w+)\}", value, line)
        for line in lines
    )


def _mistakes(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """One line per mistake: key path, what is wrong, what was given."""
    lines = []
    for detail in error.errors():
        # A union's tag is pydantic's own and no key of the recipe.
        kinds = ("classifier", "callable", "columns")
        keys = [
            str(key)
            for i, key in enumerate(detail["loc"])
            if not (key in kinds and i and detail["loc"][i - 1] in ("reward", "judge"))
        ]
        where, given = ".".join(keys), detail["input"]
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = f"unknown key{_suggestion(keys, kind)}"
        elif detail["type"] == "missing":
            message = "this key is required"
        elif detail["type"] != "value_error" and not isinstance(given, dict | list):
            message = f"{message[0].lower()}{message[1:]} (got {given!r})"
        lines.append(f"{where}: {message}" if where else message)
    return lines


def _suggestion(keys: list[str], kind: type[BaseModel]) -> str:
    known = sorted({key for section in all_sections(kind) for key in section.model_fields})
    if keys[-1] in known:
        return " here; it belongs to another section"
    close = difflib.get_close_matches(keys[-1], known, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def all_sections(kind: type[BaseModel] = Recipe) -> set[type[BaseModel]]:
    """Every section of a recipe, however deep."""
    waiting = [kind]
    found: set[type[BaseModel]] = set()
    while waiting:
        section = waiting.pop()
        found.add(section)
        for field in section.model_fields.values():
            waiting += [each for each in _sections_in(field.annotation) if each not in found]
    return found


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
