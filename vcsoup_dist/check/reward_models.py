"""The local reward models and judges that a run would load: whether they can be loaded and read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vcsoup_dist.check.data import first_pairs
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import Message
from vcsoup_dist.recipe import ClassifierReward, Recipe
from vcsoup_dist.workspace import Product

TRIED = 8
"""Pairs."""


def check_reward_models(
    recipe: Recipe, plan: Sequence[Product], to_be_made: Sequence[Product]
) -> list[str]:
    """What to warn of in those that are to be loaded; UserError, naming the key, where one would
    give no rewards, or random ones.

    Compares names and shapes of tensors with the config, and tries tokenizer and template on a few
    pairs. What a model computes is for `vcsoup reward-check`, which loads it. Imports transformers.
    """
    warnings: list[str] = []
    known: set[tuple[Path, str, str | None]] = set()
    for key, reward, source in _rewards(recipe, to_be_made):
        if not isinstance(reward, ClassifierReward) or source is None:
            continue
        folder = Path(source.source)
        reading = (folder, reward.text, reward.template)
        if folder.exists() and reading not in known:
            known.add(reading)
            try:
                warnings += _of_one(reward, source, _first_texts(recipe, plan))
            except UserError as error:
                raise UserError(f"{key}.classifier: {error}") from None
    return warnings


def _of_one(
    reward: ClassifierReward, source: Located, texts: Sequence[tuple[str, list[Message], str]]
) -> list[str]:
    from vcsoup_dist.forward.answer_text import DROPPED
    from vcsoup_dist.scoring.loading import check_classifier_files, load_tokenizer
    from vcsoup_dist.scoring.texts import text_or_reason

    check_classifier_files(source)
    if reward.trust_remote_code:  # a tokenizer may come with code too, which scoring runs
        return []
    tokenizer = load_tokenizer(reward, source)
    refused = []
    for pair, prompt, response in texts:
        text = text_or_reason(tokenizer, reward, prompt, response, None)
        reason = text if isinstance(text, str) else DROPPED if text.dropped else None
        if reason:
            refused.append(f"pair {pair}: {reason}")
    if not refused:
        return []
    share = f"{len(refused)} of the first {len(texts)} answers"
    if len(refused) == len(texts):
        raise UserError(f"{source.source}: none of the first answers can be scored; {refused[0]}")
    return [f"{source.source}: {share} cannot be scored; {refused[0]}"]


def _first_texts(recipe: Recipe, plan: Sequence[Product]) -> list[tuple[str, list[Message], str]]:
    """Id, prompt and answer, both of each pair, of the first pairs of the first local dataset."""
    for product in plan:
        if product.stage == "read" and Path(product.sources["data"].source).exists():
            pairs = first_pairs(recipe, product, product.sources["data"], TRIED)
            return [
                (pair.id, pair.prompt, text)
                for pair in pairs
                for text in (pair.chosen, pair.rejected)
            ]
    return []


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
