"""The local reward models and judges that a run would load: whether their folders are models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vcsoup_dist.checkpoints.folders import require_model
from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import ClassifierReward, Recipe
from vcsoup_dist.workspace import Product


def check_reward_models(recipe: Recipe, to_be_made: Sequence[Product]) -> None:
    """UserError, naming the key, where one could not be loaded; reads names and headers alone.

    What a model computes is for `vcsoup reward-check`, which loads it.
    """
    known: set[Path] = set()
    for key, reward, source in _rewards(recipe, to_be_made):
        if not isinstance(reward, ClassifierReward) or source is None:
            continue
        folder = Path(source.source)
        if folder.exists() and folder not in known:
            require_model(folder, f"{key}.classifier", quantised=True)
            known.add(folder)


def _rewards(
    recipe: Recipe, products: Sequence[Product]
) -> Iterator[tuple[str, object, Located | None]]:
    """Key, settings and place of each reward that a product is made with."""
    for product in products:
        if product.stage == "score":
            value = str(product.value)
            reward = recipe.values[value].reward
            yield f"values.{value}.reward", reward, product.sources.get("reward")
        elif product.stage == "evaluate":
            for name, each in recipe.values.items():
                key = f"values.{name}.{'judge' if each.judge else 'reward'}"
                yield key, recipe.judge_of(name), product.sources.get(f"judge/{name}")
