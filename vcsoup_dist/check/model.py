"""The base model: whether it is what its config says, and fits the recipe."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from vcsoup_dist.check.data import ROWS
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.preferences.rows import read_pairs
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.workspace import Product

if TYPE_CHECKING:
    from vcsoup_dist.training.base_template import Texts

READERS = ("warmup", "reference", "train")
"""Stages that load it on ranks."""


def check_model(recipe: Recipe, plan: Sequence[Product], stages: Collection[str]) -> list[str]:
    """What to warn of in a local base that one of the stages to make reads; imports transformers.

    Tries the first pairs of local datasets. Raises UserError where it cannot be trained as the
    recipe says.
    """
    from vcsoup_dist.training.base import check_base

    folder = recipe.local_path(recipe.model)
    if folder is None or not set(stages) & set(READERS):
        return []
    datasets = {
        str(each.dataset): _first_texts(recipe, each) for each in plan if each.stage == "read"
    }
    source = str(folder.resolve())
    return check_base(source, None, recipe.training, recipe.evaluation, datasets)


def _first_texts(recipe: Recipe, product: Product) -> list[Texts]:
    """The pairs of a dataset that are tried; none of one that lies on the hub."""
    from vcsoup_dist.training.base_template import TRIED, Texts

    source, data = product.sources["data"], recipe.values[str(product.dataset)].data
    if data is None or not Path(source.source).exists():
        return []
    rows = read_pairs(
        source,
        format=data.format,
        preferred_by=data.preferred_by,
        subset=data.subset,
        split=data.split,
        columns=product.made_from["columns"],
        sample=ROWS,
    )
    pairs = (row for _, row in rows if isinstance(row, Pair))
    return [Texts(row.id, row.prompt, row.chosen, row.rejected) for row in islice(pairs, TRIED)]
