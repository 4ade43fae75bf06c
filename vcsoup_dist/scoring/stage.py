"""The door of stage 1: makes `pairs/<dataset>` and `scores/<dataset>/<value>`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences import read_pairs
from vcsoup_dist.progress import progress
from vcsoup_dist.recipe import Data, Recipe
from vcsoup_dist.scoring.columns import column_scores
from vcsoup_dist.scoring.pair_files import (
    HELD_OUT,
    PairSlice,
    heldout_slices,
    read_slice,
    train_slices,
)
from vcsoup_dist.scoring.reading import Source, write_pairs
from vcsoup_dist.scoring.score_files import score_name, write_scores, write_summary
from vcsoup_dist.workspace import Draft, Product, Workspace

log = logging.getLogger("vcsoup")


def read(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make the products of stage `read`: canonical pairs of a dataset, training and held out."""
    for product in products:
        assert product.dataset is not None
        data = recipe.values[product.dataset].data
        assert data is not None
        key = f"values.{product.dataset}.data"
        columns = product.made_from["columns"]
        train = _source(product.sources["data"], data.split, data, columns, key)
        heldout = None
        if "heldout" in product.sources:
            heldout = _source(
                product.sources["heldout"], data.split, data, columns, f"{key}.heldout"
            )
        elif data.heldout is not None:
            heldout = _source(
                product.sources["data"], data.heldout, data, columns, f"{key}.heldout"
            )
        with workspace.making(product) as draft:
            manifest = write_pairs(
                draft.output,
                train,
                heldout,
                heldout_share=data.heldout_share,
                limit=data.limit,
                shard_pairs=recipe.scoring.shard_pairs,
                columns=columns,
                max_bad_rows=recipe.scoring.max_bad_rows,
            )
        log.info(
            "%s: %d pairs to train on, %d held out; left out of %d rows: %d unusable, "
            "%d duplicates, %d whose prompt is held out",
            product.name, manifest["train"], manifest["heldout"], manifest["rows"],
            sum(manifest["rejected"].values()), manifest["duplicates"],
            manifest["heldout_in_train_pairs"],
        )  # fmt: skip


def _source(located: Located, split: str, data: Data, columns: Sequence[str], key: str) -> Source:
    rows = read_pairs(located, format=data.format, subset=data.subset, split=split, columns=columns)
    return Source(f"{key} ({located.source})", rows)


@dataclass
class _Reward:
    """The products of one reward, which is loaded once for all of them."""

    products: list[Product]
    drafts: list[Draft]
    work: list[dict[Path, PairSlice]]
    """Files of scores to write, and the pairs that each is of, by product."""
    stack: ExitStack
    """Closing it publishes the products."""

    @property
    def values(self) -> list[str]:
        return sorted({str(product.value) for product in self.products})


def score(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make the products of stage `score`: one reward of every pair of a dataset.

    Shards that a killed run left are kept. Ray is started only where an actor has work to do.
    """
    groups: dict[str, list[Product]] = {}
    for product in products:
        key = json.dumps(product.made_from["reward"], sort_keys=True)
        groups.setdefault(key, []).append(product)
    with ExitStack() as all_drafts:
        rewards = []
        for group in groups.values():
            stack = all_drafts.enter_context(ExitStack())
            drafts = [stack.enter_context(workspace.making(product)) for product in group]
            work = [_work(recipe, workspace, draft) for draft in drafts]
            rewards.append(_Reward(group, drafts, work, stack))
        with_actors = []
        for reward in rewards:
            if "columns" in reward.products[0].made_from["reward"]:
                _score_columns(recipe, reward)
                _finish(recipe, reward)
            elif not _missing(reward):
                _finish(recipe, reward)
            else:
                with_actors.append(reward)
        if with_actors:
            _score_with_actors(recipe, with_actors)


def _work(recipe: Recipe, workspace: Workspace, draft: Draft) -> dict[Path, PairSlice]:
    folder = workspace.need(draft.product.inputs_of("read")[0])
    train = train_slices(folder)
    heldout = heldout_slices(folder, recipe.scoring.shard_pairs)
    return {draft.output / score_name(i): part for i, part in enumerate(train)} | {
        draft.output / score_name(i, heldout=True): part for i, part in enumerate(heldout)
    }


def _missing(reward: _Reward) -> list[tuple[Draft, Path, PairSlice]]:
    """(draft, file of scores, pairs) of all that a killed run has not left."""
    return [
        (draft, scores, part)
        for draft, work in zip(reward.drafts, reward.work, strict=True)
        for scores, part in work.items()
        if not scores.exists()
    ]


def _score_columns(recipe: Recipe, reward: _Reward) -> None:
    settings: Any = recipe.values[reward.values[0]].reward
    for _, scores, part in _missing(reward):
        write_scores(scores, column_scores(read_slice(part), settings))


def _score_with_actors(recipe: Recipe, rewards: Sequence[_Reward]) -> None:
    from vcsoup_dist.launch.ray_cluster import ray_cluster
    from vcsoup_dist.scoring.actors import Pool, ShardTask, run_pools

    pools: list[Pool] = []
    of_pool = {}
    for reward in rewards:
        tasks = [
            ShardTask(
                f"{draft.product.name}, {scores.name}",
                part,
                scores,
                draft.scratch / f"{scores.name}.starts",
                draft.workers_lock,
            )
            for draft, scores, part in _missing(reward)
        ]
        settings: Any = recipe.values[reward.values[0]].reward
        source = reward.products[0].sources["reward"]
        name = f"reward of {', '.join(reward.values)}"
        pools.append(Pool(name, settings, source, tasks, reward.drafts[0].scratch / "load.starts"))
        of_pool[name] = reward
    pairs = sum(task.pairs.rows for pool in pools for task in pool.tasks)
    with (
        ray_cluster(recipe.launch),
        progress("scoring", pairs, "pairs") as advance,
    ):
        for pool in run_pools(pools, recipe.scoring, advance):
            _finish(recipe, of_pool[pool.name])


def _finish(recipe: Recipe, reward: _Reward) -> None:
    """Summarise the scores and publish the products; raises UserError for a constant reward."""
    constants: dict[str, list[tuple[str, float]]] = {}
    for product, draft, work in zip(reward.products, reward.drafts, reward.work, strict=True):
        heldout = [file for file, part in work.items() if part.file.name == HELD_OUT]
        train = [file for file in work if file not in heldout]
        summary = write_summary(draft.output, train, heldout)
        log.info(
            "%s: %d pairs, mean %.4g, std %.4g; truncated %d texts, of %d even the response",
            product.name, summary["rows"], summary["mean"], summary["std"],
            summary["truncated"], summary["truncated_responses"],
        )  # fmt: skip
        if summary["constant"]:
            constants.setdefault(str(product.value), []).append((product.name, summary["mean"]))
    origins = [value.data.path for value in recipe.values.values() if value.data is not None]
    datasets = sum(path is not None for path in origins)
    for value, found in constants.items():
        if len(found) == datasets and len({mean for _, mean in found}) == 1:
            raise UserError(
                f"values.{value}.reward: it gives every answer the same reward, {found[0][1]:g}; "
                "check its `text` and `output`, or the function"
            )
        for name, mean in found:
            log.warning("%s: THE REWARD IS CONSTANT here, %g for every answer", name, mean)
    reward.stack.close()
