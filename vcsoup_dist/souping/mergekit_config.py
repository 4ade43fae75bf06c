"""mergekit's YAML, as far as it describes a linear soup, since that is what users have.

https://github.com/arcee-ai/mergekit, "Merge configuration": `models:` with a weight each, and
`merge_method: linear` or `task_arithmetic`. Whatever would mean another result is refused.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe.yaml_file import read_yaml
from vcsoup_dist.souping.kernels.formats import format_named
from vcsoup_dist.souping.options import MergeOptions

_KEYS = {"models", "merge_method", "base_model", "dtype", "out_dtype", "parameters"}
_METHODS = ("linear", "task_arithmetic")


OWN_KEYS = {"models", "merge_method", "slices", "modules"}
"""Of mergekit; no recipe has them."""
_MOST = 1 << 20  # bytes: no configuration is longer


def yaml_keys(file: Path) -> set[str] | None:
    """The keys of a YAML mapping, to tell mergekit's from a recipe; none of anything else.

    None where it cannot be read.
    """
    try:
        with open(file, "rb") as opened:
            content = yaml.load(opened.read(_MOST), yaml.BaseLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return set(map(str, content)) if isinstance(content, dict) else set()


def read_mergekit_config(
    file: Path, options: MergeOptions
) -> tuple[list[Path], list[tuple[float, ...]], MergeOptions]:
    """Policies, their one row of weights (normalised and scaled), and options with base and dtype.

    A dtype in `options` is kept. UserError for anything that mergekit would do and a linear soup
    does not.
    """
    content = read_yaml(file, "mergekit configuration").content
    for key in content.keys() - _KEYS:
        raise UserError(
            f"{file}: `{key}` is not supported; supported are {', '.join(sorted(_KEYS))}"
        )
    method = content.get("merge_method")
    if method not in _METHODS:
        raise UserError(f"{file}: merge_method is {method!r}; supported are {', '.join(_METHODS)}")
    arithmetic = method == "task_arithmetic"
    shared = _parameters(file, content, "parameters", {"weight", "normalize", "lambda"})
    base = _path(file, content, "base_model") if content.get("base_model") is not None else None
    if arithmetic and base is None:
        raise UserError(f"{file}: task_arithmetic needs a base_model")
    policies, weights = _models(file, content, shared, base if arithmetic else None)
    if not policies:
        raise UserError(f"{file}: `models` names no model but the base")
    is_policy = base is None or base.resolve() in [each.resolve() for each in policies]
    if not arithmetic and not is_policy:
        raise UserError(
            f"{file}: mergekit sums the base_model of a linear merge too; give it a weight under"
            " `models`, or leave base_model out"
        )
    if shared.get("normalize", not arithmetic):
        total = math.fsum(weights)
        if abs(total) < 1e-9:
            raise UserError(f"{file}: the weights sum to 0 and cannot be normalised")
        weights = [weight / total for weight in weights]
    if arithmetic:
        weights = [weight * shared.get("lambda", 1.0) for weight in weights]
    dtype = options.dtype or _dtype(file, content)
    return (
        policies,
        [tuple(weights)],
        replace(options, base=base if arithmetic else None, dtype=dtype),
    )


def _models(
    file: Path, content: dict[str, Any], shared: dict[str, float], base: Path | None
) -> tuple[list[Path], list[float]]:
    """Models and their weights, without the base."""
    models = content.get("models")
    if not isinstance(models, list) or not models:
        raise UserError(f"{file}: `models` is not a list of models")
    policies, weights = [], []
    for i, entry in enumerate(models):
        where = f"models[{i}]"
        if not isinstance(entry, dict) or entry.keys() - {"model", "parameters"}:
            raise UserError(f"{file}: {where} must have `model` and `parameters`, and no more")
        policy = _path(file, entry, "model", where)
        if base and policy.resolve() == base.resolve():
            continue  # its difference from itself is nothing
        own = _parameters(file, entry, where, {"weight"})
        if "weight" not in own and "weight" not in shared:
            raise UserError(f"{file}: {where} has no weight")
        policies.append(policy)
        weights.append(own.get("weight", shared.get("weight", 0.0)))
    return policies, weights


def _parameters(
    file: Path, holder: dict[str, Any], where: str, known: set[str]
) -> dict[str, float]:
    found = holder.get("parameters") or {}
    if not isinstance(found, dict) or found.keys() - known:
        raise UserError(f"{file}: {where}: supported parameters are {', '.join(sorted(known))}")
    for key, value in found.items():
        is_number = isinstance(value, int | float) and abs(value) < 1e100  # no NaN, no huge int
        if not is_number or (isinstance(value, bool) and key != "normalize"):
            raise UserError(
                f"{file}: {where}: {key} is {value!r}; only one number for the whole model is"
                " supported"
            )
    return {key: float(value) for key, value in found.items()}


def _path(file: Path, holder: dict[str, Any], key: str, where: str = "") -> Path:
    value = holder.get(key)
    if isinstance(value, dict) and value.keys() == {"model"}:  # what mergekit itself writes
        value = value["model"]
        value = value.get("path") if isinstance(value, dict) else value
    if not isinstance(value, str):
        raise UserError(f"{file}: {where or key}: a model is given by the path of its directory")
    expanded = Path(os.path.expanduser(value))  # which leaves the home of nobody as it is
    for path in (expanded, file.parent / value):
        if path.is_dir():
            return path
    raise UserError(f"{file}: {where or key}: {value} is not a directory; download the model first")


def _dtype(file: Path, content: dict[str, Any]) -> str | None:
    for key in ("out_dtype", "dtype"):
        value = content.get(key)
        if value is not None:
            return format_named(str(value), f"{file}: {key}")
    return None
