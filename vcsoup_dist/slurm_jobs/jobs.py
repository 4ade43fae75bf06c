"""Which Slurm jobs make the products that are due, and what each asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.pipeline.products import reads
from vcsoup_dist.recipe import ColumnsReward, Recipe
from vcsoup_dist.recipe.sbatch_options import JobStage, SbatchOptions
from vcsoup_dist.slurm_jobs.site import Site
from vcsoup_dist.workspace import Product

SCRIPTS = Path(__file__).resolve().parents[1] / "slurm"

MADE_BY: dict[str, JobStage] = {
    "read": "score",
    "score": "score",
    "filter": "filter",
    "warmup": "reference",
    "reference": "reference",
    "train": "train",
    "merge": "merge",
    "evaluate": "evaluate",
    "report": "report",
}
"""Stage of a product -> stage of the job that makes it."""


SAID_OTHERWISE = {
    "ntasks": ("ntasks-per-node", "ntasks-per-gpu"),
    "ntasks-per-node": ("ntasks", "ntasks-per-gpu"),
    "gpus-per-node": ("gpus", "gres", "gpus-per-task", "gpus-per-socket"),
    "cpus-per-task": ("cpus-per-gpu",),
}
"""Options of ours that those of a person stand in for, beside one of the same name."""


@dataclass(frozen=True)
class StageJob:
    """The job, or array of jobs, that makes what is due of a stage."""

    stage: JobStage
    products: tuple[Product, ...]
    after: tuple[JobStage, ...]
    """The jobs that make what this one reads."""
    options: SbatchOptions
    ranks: int = 1
    """Of a merge: so many jobs share it, and one more publishes."""

    @property
    def is_array(self) -> bool:
        """Whether each product has a task of its own."""
        return self.stage == "train"


def jobs_for(recipe: Recipe, site: Site, due: Sequence[Product]) -> list[StageJob]:
    """The jobs for the products that are due, each after those that it waits for."""
    products: dict[JobStage, list[Product]] = {}
    for product in due:
        products.setdefault(MADE_BY[product.stage], []).append(product)
    return [
        StageJob(
            stage,
            tuple(products[stage]),
            after=tuple(each for each in products if each in _inputs(products[stage], recipe, due)),
            options=options_of(stage, recipe, site),
            ranks=recipe.launch.merge_ranks if stage == "merge" else 1,
        )
        for stage in dict.fromkeys(MADE_BY.values())
        if stage in products
    ]


def _inputs(made: Sequence[Product], recipe: Recipe, due: Iterable[Product]) -> set[JobStage]:
    """Other jobs that must be done before these products can be made."""
    names = {each.name for each in due}
    stages = {
        MADE_BY[each.stage]
        for product in made
        for each in reads(product, recipe)
        if each.name in names
    }
    return stages - {MADE_BY[product.stage] for product in made}


def script_of(job: StageJob, recipe_file: Path) -> list[str]:
    """The script of slurm/ and its arguments."""
    recipe = str(recipe_file)
    arguments: dict[JobStage, list[str]] = {
        "score": ["score.sh", recipe],
        "filter": ["on_one_node.sh", "filter", recipe],
        "reference": ["reference.sh", recipe],
        "train": ["train_value.sh", recipe, *(each.name for each in job.products)],
        "merge": ["merge.sh", recipe],
        "evaluate": ["evaluate.sh", recipe],
        "report": ["on_one_node.sh", "report", recipe],
    }
    script, *rest = arguments[job.stage]
    return [str(SCRIPTS / script), *rest]


def options_of(stage: JobStage, recipe: Recipe, site: Site) -> SbatchOptions:
    """The recipe's options before the stage's and all jobs' of the site file, before ours."""
    given = {**site.sbatch, **site.stages.get(stage, {}), **recipe.launch.slurm.get(stage, {})}
    fewest = re.match(r"[1-9]\d*", str(given.get("nodes", 1)))  # of `2-4`, 2
    ours = _room(stage, recipe, int(fewest[0]) if fewest else 1)
    for name, others in SAID_OTHERWISE.items():
        if any(other in given for other in others):
            ours.pop(name, None)
    return {**ours, **given}


def _room(stage: JobStage, recipe: Recipe, nodes: int) -> SbatchOptions:
    """What the ranks and actors of the recipe need on each of so many nodes."""
    if stage in ("reference", "train"):
        launch = recipe.launch
        return {
            "nodes": nodes,
            "ntasks": launch.ranks,
            "ntasks-per-node": math.ceil(launch.ranks / nodes),
            "cpus-per-task": launch.threads,
        }
    cpus, gpus = 1, 0
    if stage == "score":
        rewards = [value.reward for value in recipe.values.values()]
        pools = [
            each.pool or recipe.scoring for each in rewards if not isinstance(each, ColumnsReward)
        ]
        # Where there is no room for all at once, one pool waits for another.
        for pool in pools:
            actors = math.ceil(pool.actors / nodes)
            cpus = max(cpus, math.ceil(actors * pool.cpus_per_actor))
            gpus = max(gpus, math.ceil(actors * pool.gpus_per_actor))
    if stage == "evaluate":
        actors = math.ceil(recipe.evaluation.actors / nodes)
        cpus = max(cpus, math.ceil(actors * recipe.evaluation.cpus_per_actor))
        gpus = math.ceil(actors * recipe.evaluation.gpus_per_actor)
    options: SbatchOptions = {"nodes": nodes, "ntasks-per-node": 1, "cpus-per-task": cpus}
    return {**options, "gpus-per-node": gpus} if gpus else options
