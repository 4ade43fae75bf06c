"""The models, data and code that a recipe names: where each lies, and what it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from vcsoup_dist.checkpoints.folders import describe
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes, Located, locate
from vcsoup_dist.preferences.row_files import ENDINGS, conversion, file_kind
from vcsoup_dist.recipe import CallableReward, ClassifierReward, ColumnsReward, Recipe

AnyReward = ClassifierReward | CallableReward | ColumnsReward


def find_model(
    recipe: Recipe, hashes: Hashes, reference: str, revision: str | None, key: str
) -> Located:
    """A model directory or hub repository; UserError that names the recipe's `key`."""
    local = recipe.local_path(reference)
    located = locate(reference, local, revision, "model", key, hashes)
    if local is not None and not (local / "config.json").exists():
        found = describe(local)
        if not found.holds:
            raise UserError(f"{key}: {found.line}")
        raise UserError(f"{key}: {reference} is not a model directory (it has no config.json)")
    return located


def find_data(
    recipe: Recipe, hashes: Hashes, reference: str, revision: str | None, key: str
) -> Located:
    """A file or folder of rows, or a dataset on the hub; UserError that names the key."""
    local = recipe.local_path(reference)
    known = file_kind(Path(reference))
    if local is None and known:
        raise UserError(f"{key}: no such file: {reference}")
    if local is not None and local.is_file() and not known:
        raise UserError(
            f"{key}: {reference} is not a {', '.join(ENDINGS)} file; {conversion(local)}"
        )
    return locate(reference, local, revision, "dataset", key, hashes)


def find_reward(
    recipe: Recipe, hashes: Hashes, reward: AnyReward, key: str
) -> tuple[dict[str, Any], Located | None]:
    """What decides a reward's numbers, JSON-able, and where its model or code lies."""
    settings = reward.model_dump(mode="json", exclude={"pool", "attention"})
    if isinstance(reward, ClassifierReward):
        model = find_model(recipe, hashes, reward.classifier, reward.revision, f"{key}.classifier")
        return {**settings, "classifier": model.identity, "revision": None}, model
    if isinstance(reward, CallableReward):
        code = _code(recipe, reward.callable, f"{key}.callable")
        # What it imports from the same folder decides its numbers too.
        files = {each.name: hashes.of(each) for each in sorted(code.parent.glob("*.py"))}
        return {**settings, "code": files}, Located(str(code), None, None)
    return settings, None


def _code(recipe: Recipe, reference: str, key: str) -> Path:
    module, _, _ = reference.partition(":")
    if module.endswith(".py"):
        path = recipe.local_path(module)
        if path is None:
            raise UserError(f"{key}: no such file: {module}")
        return path
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"{key}: no module `{module}` can be imported")
    return Path(spec.origin)


def is_split(heldout: str | None, source: Located) -> bool:
    """Whether held-out pairs are another split of the dataset, and no file of their own.

    A bare name is, even where a folder of that name lies beside the recipe.
    """
    if heldout is None or Path(source.source).is_file():
        return False
    return "/" not in heldout and file_kind(Path(heldout)) is None
