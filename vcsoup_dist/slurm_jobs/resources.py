"""What the ranks and actors of a recipe need on each node of a job, as options of `sbatch`."""

from __future__ import annotations

import math

from vcsoup_dist.recipe import ColumnsReward, Recipe
from vcsoup_dist.recipe.sbatch_options import SbatchOptions


def one_process(recipe: Recipe, nodes: int) -> SbatchOptions:
    """A command without ranks or actors."""
    return _actors(nodes, cpus=1, gpus=0)


def ranks(recipe: Recipe, nodes: int) -> SbatchOptions:
    """Training ranks, spread over the nodes."""
    launch = recipe.launch
    return {
        "nodes": nodes,
        "ntasks": launch.ranks,
        "ntasks-per-node": math.ceil(launch.ranks / nodes),
        "cpus-per-task": launch.threads,
    }


def reward_actors(recipe: Recipe, nodes: int) -> SbatchOptions:
    """The largest pool of reward models; where not all have room at once, one pool waits."""
    rewards = [value.reward for value in recipe.values.values()]
    pools = [each.pool or recipe.scoring for each in rewards if not isinstance(each, ColumnsReward)]
    needs = [
        _of_pool(math.ceil(each.actors / nodes), each.cpus_per_actor, each.gpus_per_actor)
        for each in pools
    ]
    return _actors(
        nodes,
        cpus=max((cpus for cpus, _ in needs), default=1),
        gpus=max((gpus for _, gpus in needs), default=0),
    )


def evaluation_actors(recipe: Recipe, nodes: int) -> SbatchOptions:
    """The actors that answer and judge."""
    settings = recipe.evaluation
    actors = math.ceil(settings.actors / nodes)
    cpus, gpus = _of_pool(actors, settings.cpus_per_actor, settings.gpus_per_actor)
    return _actors(nodes, cpus, gpus)


def _of_pool(actors: int, cpus: float, gpus: float) -> tuple[int, int]:
    """Whole CPUs and GPUs for so many actors on one node."""
    return max(1, math.ceil(actors * cpus)), math.ceil(actors * gpus)


def _actors(nodes: int, cpus: int, gpus: int) -> SbatchOptions:
    options: SbatchOptions = {"nodes": nodes, "ntasks-per-node": 1, "cpus-per-task": cpus}
    return {**options, "gpus-per-node": gpus} if gpus else options
