"""Reading a recipe from YAML; every mistake becomes one line that names the key and its line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import IN_WORDS, Recipe
from vcsoup_dist.recipe.renamed import with_new_names
from vcsoup_dist.recipe.yaml_file import (
    KeyPath,
    Written,
    YamlFile,
    dotted,
    read_value,
    read_yaml,
    shown,
)

Content = TypeVar("Content", bound=BaseModel)

SUGGESTED = 3  # keys of other sections, at most
MISTAKES_SHOWN = 20
LARGEST = 2**63 - 1
NAMED = {"values": ".NAME", "methods": ".NAME"}  # sections whose keys people choose


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; `${NAME}` in it is replaced from the environment.

    `overrides`: `KEY=VALUE`, such as `training.steps=20`, each as if it stood in the file.
    Raises UserError with one line per mistake, each naming the key's path and line.
    """
    file = read_yaml(path, "recipe", environment=True)
    for each in overrides:
        file = _overridden(file, each)
    recipe = _validated(path, with_new_names(file, path), Recipe)
    recipe.read_from(path)
    return recipe


def load_copy(path: Path, original: Path) -> Recipe:
    """Read the copy of a recipe that a run directory has; its paths are those of the original."""
    recipe = _validated(path, read_yaml(path, "recipe"), Recipe)
    recipe.read_from(original)
    return recipe


def load_section(path: Path, kind: type[Content], called: str) -> Content:
    """What a YAML file holds as a section of that kind, with the same errors as a recipe's."""
    return _validated(path, read_yaml(path, called, environment=True), kind)


def _validated(path: Path, file: YamlFile, kind: type[Content]) -> Content:
    try:
        section = kind.model_validate(file.content)
    except ValidationError as error:
        mistakes = _mistakes(error, file, kind)
    else:
        mistakes = list(_not_as_written(file.content, section.model_dump(), file, ()))
        if not mistakes:
            return section
    more = len(mistakes) - MISTAKES_SHOWN
    shown_mistakes = mistakes[:MISTAKES_SHOWN] + ([f"and {more} more"] if more > 0 else [])
    raise UserError("\n".join(f"{path}: {mistake}" for mistake in shown_mistakes))


def _overridden(file: YamlFile, override: str) -> YamlFile:
    name, equals, text = override.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise UserError(
            f"--set {shown(override)}: give KEY=VALUE with a key's path, such as training.steps=20"
        )
    where = f"--set {shown(name.strip())}"
    value = read_value(text, where, keys)
    content = dict(file.content)
    section = content
    for i, key in enumerate(keys[:-1]):
        below = section.get(key)
        if below is not None and not isinstance(below, dict):
            raise UserError(f"{where}: `{dotted(keys[: i + 1])}` is not a section of keys")
        section[key] = section = dict(below or {})
    section[keys[-1]] = value.content[""]
    kept = {path: each for path, each in file.written.items() if path[: len(keys)] != keys}
    above = {keys[:i]: Written(where) for i in range(1, len(keys))}
    return YamlFile(content, above | kept | value.written)


def _not_as_written(raw: Any, read: Any, file: YamlFile, path: KeyPath) -> Iterator[str]:
    """Where a number was made of something else, which pydantic does: `yes` is not 1."""
    if isinstance(raw, dict) and isinstance(read, dict):
        for key, value in raw.items():
            yield from _not_as_written(value, read.get(key), file, (*path, key))
    elif isinstance(raw, list) and isinstance(read, list | tuple):
        for i, (value, item) in enumerate(zip(raw, read, strict=False)):
            yield from _not_as_written(value, item, file, (*path, i))
    elif isinstance(read, int | float) and not isinstance(read, bool):
        written = _text_of(raw, file, path)
        if isinstance(raw, bool):
            yield _line(file, path, f"needs a number (got {written}, which is yes or no to YAML)")
        elif isinstance(raw, str) and isinstance(read, int):
            yield _line(file, path, f"needs a whole number, without quotes (got {raw!r})")
        elif isinstance(raw, float) and isinstance(read, int):
            yield _line(file, path, f"needs a whole number (got {written}; write {read})")
        elif isinstance(read, int) and abs(read) > LARGEST:
            yield _line(file, path, f"needs a number of at most 2^63 - 1 (got {written})")


def _text_of(raw: Any, file: YamlFile, path: KeyPath) -> str:
    written = file.written.get(path)
    return shown(raw if written is None or written.text is None else written.text)


def _line(file: YamlFile, path: KeyPath, message: str) -> str:
    where = file.line_of(path)
    parts = [where, dotted(path), message]
    return ": ".join(part for part in parts if part)


def _mistakes(error: ValidationError, file: YamlFile, kind: type[BaseModel]) -> list[str]:
    """One line per mistake: its line, the key's path, what is wrong, what was given."""
    lines: dict[object, str] = {}  # a union has a mistake for each of its kinds, at one path
    for number, detail in enumerate(details := error.errors()):
        if len(lines) == MISTAKES_SHOWN:  # finding what a key may have meant takes time
            return [*lines.values(), *[""] * (len(details) - number)]
        path, rest = _in_the_file(detail["loc"], file)
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = f"unknown key{_suggestion(path, kind)}"
        elif detail["type"] == "missing":
            where = file.line_of(path)
            name = dotted((*path, *rest[-1:]))
            lines[name] = ": ".join(filter(None, (where, name, "this key is required")))
            continue
        elif detail["type"] == "value_error":
            where = file.line_of((*path, *_named_in(message)))
            lines[message] = ": ".join(filter(None, (where, dotted(path), message)))
            continue
        elif detail["type"] not in ("reward_kind", "method_kind"):
            message = _of_a_value(dict(detail), file, path)
        lines.setdefault(path, _line(file, path, message))
    return list(lines.values())


def _in_the_file(loc: Sequence[str | int], file: YamlFile) -> tuple[KeyPath, KeyPath]:
    """The part of pydantic's path that is in the file, and the rest: a key that is missing, or
    pydantic's own names of a union's kinds."""
    path: KeyPath = ()
    for i, key in enumerate(loc):
        if i == 3 and loc[0] == "values" and loc[2] in ("reward", "judge"):
            continue  # the kind of reward
        if i == 2 and loc[0] == "methods":
            continue  # the kind of method
        if (*path, key) not in file.written:
            return path, tuple(loc[i:])
        path = (*path, key)
    return path, ()


def _named_in(message: str) -> KeyPath:
    """The key that a validator's message begins with, such as `soup.weights[0]`."""
    found = re.match(r"[\w.\[\]]+", message)
    parts = re.split(r"[.\[\]]+", found[0].rstrip("].:")) if found else []
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _of_a_value(detail: dict[str, Any], file: YamlFile, path: KeyPath) -> str:
    """What is wrong with a value that pydantic refuses."""
    given, message = detail["input"], str(detail["msg"])
    text = _text_of(given, file, path)
    needed = message.removeprefix("Input should be ").partition(",")[0]
    if detail["type"] in ("model_type", "dict_type", "model_attributes_type"):
        needed = "keys of its own, below it or in {}"
    if given is None:
        return f"no value is given; needs {needed}, or leave the key out"
    if isinstance(given, dict | list):
        return f"needs {needed} (got {'keys' if isinstance(given, dict) else 'a list'})"
    if detail["type"] == "string_type":
        kind = "yes or no" if isinstance(given, bool) else "a number"
        return f'`{text}` is {kind} to YAML; put it in quotes: "{text}"'
    if detail["type"] == "string_pattern_mismatch":
        return f"{IN_WORDS[detail['ctx']['pattern']]} (got {text!r})"
    if needed.startswith("keys"):
        return f"needs {needed} (got {text!r})"
    return (
        f"{message[0].lower()}{message[1:]} (got {text if type(given) is not str else repr(text)})"
    )


def _suggestion(path: KeyPath, kind: type[BaseModel]) -> str:
    """Where a key of that name is, or one like it in its own section, or in another."""
    key = str(path[-1])
    own = dotted(path[:-1])
    if path[0] in ("values", "methods") and len(path) > 2:
        own = dotted((path[0], "NAME", *path[2:-1]))
    known: dict[str, list[str]] = {}
    for section, fields in sections_of(kind):
        for name in fields.model_fields:
            known.setdefault(name, []).append(section)
    close = difflib.get_close_matches(key, known, n=1)
    in_own = [name for name, sections in known.items() if own in sections]
    like = difflib.get_close_matches(key, in_own, n=1)
    if key not in known and like:
        return f"; did you mean `{like[0]}`?"
    if not close:
        return ""
    found = list(dict.fromkeys(f"{each}.{close[0]}".lstrip(".") for each in known[close[0]]))
    found.sort(key=lambda each: each.startswith("methods."))  # options that few recipes have
    return f"; did you mean {' or '.join(f'`{each}`' for each in found[:SUGGESTED])}?"


def sections_of(kind: type[BaseModel] = Recipe) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of a recipe, however deep, with its path; the recipe's own is empty."""
    waiting: list[tuple[str, type[BaseModel]]] = [("", kind)]
    while waiting:
        path, section = waiting.pop(0)
        yield path, section
        for name, field in section.model_fields.items():
            below = f"{path}.{name}".lstrip(".") + NAMED.get(name, "")
            waiting += [(below, each) for each in _sections_in(field.annotation)]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
