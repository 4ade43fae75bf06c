"""The base model: whether it is what its config says, and fits the recipe."""

from __future__ import annotations

from collections.abc import Collection

from vcsoup_dist.recipe import Recipe

READERS = ("warmup", "reference", "train")
"""Stages that load it on ranks."""


def check_model(recipe: Recipe, stages: Collection[str]) -> list[str]:
    """What to warn of in a local base that one of the stages to make reads; imports transformers.

    Raises UserError where it cannot be trained as the recipe says.
    """
    from vcsoup_dist.training.base import check_base

    folder = recipe.local_path(recipe.model)
    if folder is None or not set(stages) & set(READERS):
        return []
    return check_base(str(folder.resolve()), None, recipe.training, recipe.evaluation)
