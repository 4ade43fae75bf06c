"""The entry of stage 1: makes `pairs/<dataset>` and `scores/<dataset>/<value>`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing

from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.rows import read_pairs
from vcsoup_dist.progress import progress
from vcsoup_dist.recipe import ColumnsReward, Data, Recipe
from vcsoup_dist.records.pairs import read_slice
from vcsoup_dist.records.scores import write_scores
from vcsoup_dist.scoring.columns import column_scores
from vcsoup_dist.scoring.groups import Group, finish, group_products
from vcsoup_dist.scoring.reading import Source, write_pairs
from vcsoup_dist.workspace import Product, Workspace

log = logging.getLogger("vcsoup")


def read(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make the products of stage `read`: canonical pairs of a dataset, training and held out."""
    for product in products:
        data = recipe.datasets()[str(product.dataset)]
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
        with workspace.publishing(product) as draft:
            manifest = write_pairs(
                draft.output,
                train,
                heldout,
                heldout_share=data.heldout_share,
                limit=data.limit,
                columns=columns,
                max_bad_rows=recipe.scoring.max_bad_rows,
            )
        log.info(
            "%s: %d pairs to train on, %d held out; the rest of %d rows: %d the other half of a "
            "pair, %d unusable, %d that make no pair, %d duplicates, %d whose prompt is held out",
            product.name, manifest.train, manifest.heldout, manifest.rows,
            manifest.joined, sum(manifest.rejected.values()),
            sum(manifest.left_out.values()), manifest.duplicates,
            manifest.heldout_in_train_pairs,
        )  # fmt: skip


def _source(located: Located, split: str, data: Data, columns: Sequence[str], key: str) -> Source:
    tally: Counter[str] = Counter()
    rows = read_pairs(
        located,
        format=data.format,
        preferred_by=data.preferred_by,
        subset=data.subset,
        split=split,
        columns=columns,
        tally=tally,
    )
    return Source(f"{key} ({located.source})", rows, tally)


def score(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make the products of stage `score`: one reward of every pair of a dataset.

    Shards that a killed run left are kept. Ray is started only where an actor has work to do.
    """
    with ExitStack() as stack:
        for_actors = []
        for group in group_products(recipe, workspace, products, stack):
            settings = recipe.values[group.values[0]].reward
            if isinstance(settings, ColumnsReward):
                _score_columns(group, settings)
            if group.is_scored():
                finish(recipe, group)
            else:
                for_actors.append(group)
        if for_actors:
            _score_with_actors(recipe, workspace, for_actors)


def _score_columns(group: Group, settings: ColumnsReward) -> None:
    for member in group.members:
        for part, file in member.missing().items():
            write_scores(file, column_scores(read_slice(part), settings))


def _score_with_actors(recipe: Recipe, workspace: Workspace, groups: Sequence[Group]) -> None:
    from vcsoup_dist.launch.pools import run_pools
    from vcsoup_dist.launch.ray_cluster import ray_cluster
    from vcsoup_dist.scoring.group_workload import workload_of

    workloads = [workload_of(recipe, group) for group in groups]
    of_workload = dict(zip([each.name for each in workloads], groups, strict=True))
    pairs = sum(task.pairs.rows for each in workloads for task in each.tasks)
    with (
        ray_cluster(recipe.launch, workspace.root),
        progress("scoring", pairs, "pairs") as advance,
        closing(run_pools(workloads, advance)) as done,
    ):
        for workload in done:
            finish(recipe, of_workload[workload.name])
