"""The first pair of a dataset: whether it is there, before a run starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.preferences.rows import read_pairs
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.workspace import Product


def check_files(recipe: Recipe, plan: Sequence[Product]) -> None:
    """Read the local files of a plan up to their first pair.

    Raises UserError where one cannot be read, or does not have what its `data` or a reward names.
    """
    for product in plan:
        if product.stage == "read":
            for source in product.sources.values():
                if Path(source.source).is_file():
                    first_pair(recipe, product, source)


def first_pair(recipe: Recipe, product: Product, source: Located) -> Pair | None:
    """The first pair of a source of a product of stage `read`, with the columns that rewards name.

    None where no row can be read as one. Raises UserError as `read_pairs` does.
    """
    data = recipe.values[str(product.dataset)].data
    assert data is not None
    rows = read_pairs(
        source,
        format=data.format,
        preferred_by=data.preferred_by,
        subset=data.subset,
        split=data.split,
        columns=product.made_from["columns"],
    )
    return next((row for _, row in rows if isinstance(row, Pair)), None)
