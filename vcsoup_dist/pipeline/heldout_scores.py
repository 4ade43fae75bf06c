"""Which rewards of held-out pairs anything reads."""

from __future__ import annotations

from vcsoup_dist.methods import methods_of
from vcsoup_dist.recipe import Recipe


def reads_heldout_scores(recipe: Recipe, dataset: str, value: str) -> bool:
    """Whether anything reads the rewards that a value gives the held-out pairs of a dataset.

    A value that borrows pairs orders their answers by its own reward, those of held-out pairs too.
    A dataset's own value takes them as they are, since no rule filters them. Methods that
    take the pairs of all values fit temperatures to held-out ones, or weigh or write into prompts
    those that they evaluate.
    """
    policies = (each for one in methods_of(recipe).values() for each in one.policies(recipe))
    if any(policy.reads_union for policy in policies):
        return True
    datasets = recipe.datasets_of(value)
    return value in recipe.trained_values() and datasets != [value] and dataset in datasets
