"""The workload of one reward model: the shards of its products that lack scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.pairs import PairSlice
from vcsoup_dist.records.scores import has_reward
from vcsoup_dist.scoring.groups import Group, ScoringProduct, most_unscored
from vcsoup_dist.scoring.quarantine import QUARANTINE
from vcsoup_dist.scoring.tasks import Output, ShardTask
from vcsoup_dist.scoring.workload import ScoringWorkload, worker_resources


def workload_of(recipe: Recipe, group: Group) -> ScoringWorkload:
    """The workload of a group that lacks some scores.

    Where no pair has a reward yet, scores that say so are removed: they are tried again.
    """
    kept = [path for member in group.members for file in member.files for path in file.found()]
    resumed = any(map(has_reward, kept))
    if not resumed:
        for path in kept:
            path.unlink()
    settings: list[Any] = [recipe.values[value].reward for value in group.values]
    own = settings[0].pool
    actors = own or recipe.scoring
    first = group.members[0]
    quarantine = first.draft.scratch / QUARANTINE
    quarantine.unlink(missing_ok=True)
    return ScoringWorkload(
        name=group.name,
        section=f"values.{group.values[0]}.reward.pool" if own else "scoring",
        tasks=_tasks(group),
        workers=actors.actors,
        resources=worker_resources(actors),
        rewards=settings,
        source=first.product.sources["reward"],
        tokens_per_batch=recipe.scoring.tokens_per_batch,
        most_unscored={
            member.product.name: most_unscored(recipe, member) for member in group.members
        },
        resumed=resumed,
        quarantine=quarantine,
    )


def _tasks(group: Group) -> list[ShardTask]:
    outputs: dict[PairSlice, list[Output]] = {}
    for member in group.members:
        for part, file in member.missing().items():
            outputs.setdefault(part, []).append(_output(group, member, file))
    return [ShardTask(part, tuple(lacking)) for part, lacking in outputs.items()]


def _output(group: Group, member: ScoringProduct, file: Path) -> Output:
    column = group.values.index(member.value)
    return Output(member.product.name, column, file, member.draft.workers_lock)
