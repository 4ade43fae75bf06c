"""The base model: whether it is what its config says, and fits the recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vcsoup_dist.check.data import first_pairs
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.workspace import Product

if TYPE_CHECKING:
    from vcsoup_dist.training.base_checks.first_pairs import Texts

READERS = ("sft", "reference", "train")
"""Stages that load it on ranks."""


def check_model(recipe: Recipe, plan: Sequence[Product], stages: Collection[str]) -> list[str]:
    """What to warn of in a local base that one of the stages to make reads; imports transformers.

    Tries the first pairs of local datasets. Raises UserError where it cannot be trained as the
    recipe says.
    """
    from vcsoup_dist.training.base_checks.check import check_base

    folder = recipe.local_path(recipe.model)
    if folder is None or not set(stages) & set(READERS):
        return []
    datasets = {
        str(each.dataset): _first_texts(recipe, each) for each in plan if each.stage == "read"
    }
    source = str(folder.resolve())
    warnings = check_base(source, None, recipe.training, recipe.evaluation, datasets)
    _check_arrival(source, plan, datasets)
    return warnings


def _check_arrival(
    source: str, plan: Sequence[Product], datasets: Mapping[str, Sequence[Texts]]
) -> None:
    """UserError where scores that a method writes into prompts do not arrive in the tokens."""
    from vcsoup_dist.forward.tokenizer import open_tokenizer
    from vcsoup_dist.in_context.encoding import check_arrival
    from vcsoup_dist.records.in_context import ScorePrompt

    for each in plan:
        if each.stage == "in_context":
            how = ScorePrompt.from_json(each.made_from["scores"])
            for pair in datasets[str(each.dataset)][:1]:
                tokenizer = open_tokenizer(source, None)
                check_arrival(tokenizer, how, pair.prompt, str(each.method))


def _first_texts(recipe: Recipe, product: Product) -> list[Texts]:
    """The pairs of a dataset that are tried; none of one that lies on the hub."""
    from vcsoup_dist.training.base_checks.first_pairs import TRIED, Texts

    source = product.sources["data"]
    if not Path(source.source).exists():
        return []
    pairs = first_pairs(recipe, product, source, TRIED)
    return [Texts(pair.id, pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
