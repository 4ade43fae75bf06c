"""Products `scores/<dataset>/<value>` that one loaded reward model makes together."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.pairs import HELD_OUT, PairSlice
from vcsoup_dist.records.scores import (
    ROUNDING,
    FirstUnscored,
    ScoresManifest,
    read_scores,
    summarise,
)
from vcsoup_dist.scoring.rewards import model_key
from vcsoup_dist.scoring.score_files import ScoreFile, heldout_file, score_files
from vcsoup_dist.workspace import Draft, Product, Workspace

log = logging.getLogger("vcsoup")


@dataclass(frozen=True)
class ScoringProduct:
    """A product that is being scored."""

    draft: Draft
    files: list[ScoreFile]
    made: Path | None
    """The product where it has the training pairs' scores already, and held-out ones are added."""

    @property
    def product(self) -> Product:
        return self.draft.product

    @property
    def value(self) -> str:
        return str(self.product.value)

    @property
    def pairs(self) -> int:
        """Those that it has a score of in the end."""
        made = ScoresManifest.read(self.made).rows if self.made else 0
        return made + sum(part.rows for file in self.files for part in file.shards)

    def missing(self) -> dict[PairSlice, Path]:
        """The shards that a killed run has not left, and the files to write their scores to."""
        return {part: shard for file in self.files for part, shard in file.missing().items()}


@dataclass(frozen=True)
class Group:
    """Products of one reward model, which is loaded once, and run once for all its values."""

    members: Sequence[ScoringProduct]
    publish: ExitStack
    """Closing it publishes the products."""

    @property
    def values(self) -> list[str]:
        """In the recipe's order."""
        return list(dict.fromkeys(member.value for member in self.members))

    @property
    def name(self) -> str:
        return f"reward of {', '.join(self.values)}"

    def is_scored(self) -> bool:
        """Whether the scores of all shards are there."""
        return not any(member.missing() for member in self.members)


def group_products(
    recipe: Recipe, workspace: Workspace, products: Sequence[Product], stack: ExitStack
) -> list[Group]:
    """Drafts of products, by the model that scores them; `stack` holds their locks."""
    shared: dict[Any, list[Product]] = {}
    order = list(recipe.values)
    for product in sorted(products, key=lambda each: order.index(str(each.value))):
        made_from = product.made_from["reward"]
        reward: Any = recipe.values[str(product.value)].reward
        if "columns" in made_from:
            key: Any = product.value
        else:
            where = reward.model_dump_json(include={"pool", "attention"})
            key = (model_key(made_from), where)
        shared.setdefault(key, []).append(product)
    groups = []
    for products in shared.values():
        publish = stack.enter_context(ExitStack())
        drafts = [publish.enter_context(workspace.publishing(product)) for product in products]
        members = [_member(recipe, workspace, draft) for draft in drafts]
        groups.append(Group(members, publish))
    return groups


def _member(recipe: Recipe, workspace: Workspace, draft: Draft) -> ScoringProduct:
    product, shard_pairs = draft.product, recipe.scoring.shard_pairs
    pairs = workspace.need(product.inputs_of("read")[0])
    made = workspace.folder(product) if workspace.is_begun(product) else None
    files = [] if made else score_files(pairs, draft.output, shard_pairs)
    if product.covers:
        files.append(heldout_file(pairs, draft.output, shard_pairs))
    else:  # a killed run may have needed them
        for file in draft.output.glob("heldout*.parquet"):
            file.unlink()
    return ScoringProduct(draft, files, made)


def finish(recipe: Recipe, group: Group) -> None:
    """Join the shards' scores, summarise them and publish the products.

    Raises UserError for a reward that is constant, that too many pairs lack, or that reads the same
    tokens in both answers of every pair.
    """
    found: dict[str, list[tuple[str, ScoresManifest]]] = {}
    for member in group.members:
        summary = _summarise(recipe, member)
        _check_unscored(recipe, group, member, summary)
        found.setdefault(member.value, []).append((member.product.name, summary))
    datasets = len(recipe.datasets())
    for value, summaries in found.items():
        _check_telling(value, summaries, everywhere=len(summaries) == datasets)
    group.publish.close()


def _check_telling(
    value: str, named: Sequence[tuple[str, ScoresManifest]], everywhere: bool
) -> None:
    """Warn of datasets on which a reward is constant; raises UserError where it tells nothing.

    named: summaries by their product's name; everywhere: whether they are of all datasets.
    """
    summaries = [summary for _, summary in named]
    means = [each.mean or 0.0 for each in summaries if each.constant]
    if everywhere and len(means) == len(summaries):
        size = max(map(abs, means))
        if max(means) - min(means) <= summaries[0].rounding * size:
            exactly = all(each.min == each.max for each in summaries)
            but = "" if exactly else " but for rounding"
            raise UserError(
                f"values.{value}.reward: it gives every answer the same reward{but}, "
                f"{means[0]:g}; check its `text` and `output`, or the function"
            )
    blind = [each for each in summaries if each.equal_pairs == each.scored]
    if everywhere and len(blind) == len(summaries):
        raise UserError(
            f"values.{value}.reward: the two answers of every pair are the same tokens to it; "
            "check its `text`, its `max_length` and its chat template"
        )
    for name, each in named:
        if each.constant:
            log.warning("%s: THE REWARD IS CONSTANT here, %g for every answer", name, each.mean)


def _summarise(recipe: Recipe, member: ScoringProduct) -> ScoresManifest:
    for each in member.files:
        each.join()
    if member.made:
        return ScoresManifest.read(member.made)
    dtype = getattr(recipe.values[member.value].reward, "dtype", "fp32")
    softmax = getattr(recipe.values[member.value].reward, "softmax", False)
    rounding = ROUNDING["fp32" if softmax else dtype]  # probabilities are of a head in fp32
    output = member.draft.output
    train = [each.file.name for each in member.files if each.file.name != HELD_OUT]
    summary = summarise(output, train, rounding)
    summary.write(output)
    name = member.product.name
    if summary.mean is not None:
        log.info(
            "%s: %d pairs, mean %.4g, std %.4g; truncated %d texts, of %d even the response",
            name, summary.rows, summary.mean, summary.std,
            summary.truncated, summary.truncated_responses,
        )  # fmt: skip
    if summary.equal_pairs:
        log.warning(
            "%s: THE TWO ANSWERS OF %d OF %d PAIRS ARE THE SAME TOKENS to the reward, so their gap "
            "is 0", name, summary.equal_pairs, summary.rows,
        )  # fmt: skip
    if summary.unscored:
        reasons = [f"{count} x {reason}" for reason, count in summary.reasons.items()]
        log.warning(
            "%s: %d OF %d PAIRS HAVE NO REWARD: %s",
            name, summary.unscored, summary.rows, "; ".join(reasons[:3]),
        )  # fmt: skip
    return summary


def _check_unscored(
    recipe: Recipe, group: Group, member: ScoringProduct, summary: ScoresManifest
) -> None:
    unscored, pair = summary.unscored, summary.first_unscored
    if (file := member.draft.output / HELD_OUT).exists():
        heldout = read_scores(file)
        unscored += len(heldout.failures)
        for place, reason in heldout.failures.items():
            pair = pair or FirstUnscored(heldout.ids[place], reason)
    enough = summary.mean is not None and unscored <= most_unscored(recipe, member)
    if pair is None or enough:
        return
    raise too_many_unscored(group.name, member.draft.output, unscored, f"{pair.id}: {pair.reason}")


def most_unscored(recipe: Recipe, member: ScoringProduct) -> int:
    """Pairs of a product that may lack a reward."""
    return math.floor(recipe.scoring.max_bad_rows * member.pairs + 1e-9)


def too_many_unscored(reward: str, output: Path, pairs: int, first: str) -> UserError:
    """The error for a product, made in `output`, of which too many pairs have no reward."""
    return UserError(
        f"{reward}: {pairs} pairs have no reward, more than scoring.max_bad_rows allows; the first "
        f"is {first}. Fix the reward or allow more; where the recipe and the reward's code stay "
        f"as they are, remove {output} to score its pairs again"
    )
