"""SFT, where the recipe makes theta_0 by it."""

from __future__ import annotations

from vcsoup_dist.recipe import OF_PAIRS, Recipe, Sft, Training


def sft_training(recipe: Recipe) -> Training:
    """Settings of SFT: the keys of `sft`, and of `training` where `sft` has none.

    `epochs` counts the answers that fit into `max_length`, whatever `training.equal_steps` says:
    before the filter all methods have the same pairs.
    """
    settings = recipe.training.model_dump(exclude=OF_PAIRS) | (recipe.sft or Sft()).model_dump()
    return Training.model_validate(settings | {"objective": "sft", "equal_steps": False})
