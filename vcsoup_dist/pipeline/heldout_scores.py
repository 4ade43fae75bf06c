"""Which rewards of held-out pairs anything reads."""

from __future__ import annotations

from vcsoup_dist.recipe import Recipe


def reads_heldout_scores(recipe: Recipe, dataset: str, value: str) -> bool:
    """Whether anything reads the rewards that a value gives the held-out pairs of a dataset.

    A value that borrows pairs orders their answers by its own reward, those of held-out pairs too.
    A dataset's own value takes them as they are, since no rule filters them.
    """
    datasets = recipe.datasets_of(value)
    return value in recipe.trained_values() and datasets != [value] and dataset in datasets
