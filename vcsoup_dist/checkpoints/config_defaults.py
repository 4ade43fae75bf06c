"""What an architecture's config class declares, without importing transformers.

A key that a config.json leaves out has the default of the installed transformers. Importing that
takes seconds; the class is read from its source instead, which takes milliseconds.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

UNKNOWN = object()
"""A default that is computed."""


@cache
def declared_keys(model_type: str) -> dict[str, Any] | None:
    """Keys of an architecture's config -> their defaults, `UNKNOWN` where these are computed.

    None for an architecture that the installed transformers, if any, does not have.
    """
    for file in _files(model_type):
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        for node in classes.values():
            if _own_keys(node).get("model_type") == model_type:
                return _keys(node, classes)
    return None


def _files(model_type: str) -> Iterator[Path]:
    """Where the class may be: `gemma3_text` is in the folder `gemma3`."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return
    models = Path(spec.submodule_search_locations[0]) / "models"
    parts = model_type.replace("-", "_").replace(".", "_").split("_")
    if not all(part.isalnum() for part in parts):
        return
    for length in range(len(parts), 0, -1):
        yield from sorted((models / "_".join(parts[:length])).glob("configuration_*.py"))


def _keys(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes and classes[base.id] is not node:
            found |= _keys(classes[base.id], classes)
    return found | _own_keys(node)


def _own_keys(node: ast.ClassDef) -> dict[str, Any]:
    """Fields of a dataclass (transformers 5) and arguments of `__init__` (before)."""
    found: dict[str, Any] = {}
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            found[each.target.id] = _literal(each.value)
        elif isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
            found[each.targets[0].id] = _literal(each.value)
        elif isinstance(each, ast.FunctionDef) and each.name == "__init__":
            names = [argument.arg for argument in each.args.args]
            defaults = each.args.defaults
            with_default = names[len(names) - len(defaults) :]
            found |= dict(zip(with_default, map(_literal, defaults), strict=True))
    return found


def _literal(node: ast.expr | None) -> Any:
    if node is None:
        return UNKNOWN
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNKNOWN
