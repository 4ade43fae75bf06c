"""Which Slurm jobs make the products that are due, and what each asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.pipeline.graph import reads
from vcsoup_dist.pipeline.stages import STAGES, Job, function, jobs
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.sbatch_options import SbatchOptions
from vcsoup_dist.slurm_jobs.site import Site
from vcsoup_dist.workspace import Product

SCRIPTS = Path(__file__).resolve().parents[1] / "slurm"

SAID_OTHERWISE = {
    "ntasks": ("ntasks-per-node", "ntasks-per-gpu"),
    "ntasks-per-node": ("ntasks", "ntasks-per-gpu"),
    "gpus-per-node": ("gpus", "gres", "gpus-per-task", "gpus-per-socket"),
    "cpus-per-task": ("cpus-per-gpu",),
}
"""Options of ours that those of a person stand in for, beside one of the same name."""


@dataclass(frozen=True)
class StageJob:
    """A job, or an array of them, and the due products that it makes."""

    job: Job
    products: tuple[Product, ...]
    after: tuple[str, ...]
    """Names of the jobs that make what this one reads."""
    options: SbatchOptions
    ranks: int = 1
    """Of a job that is shared: so many tasks share it, and one more publishes."""

    @property
    def name(self) -> str:
        """As the recipe's `launch.slurm` calls it."""
        return self.job.name


def jobs_for(recipe: Recipe, site: Site, due: Sequence[Product]) -> list[StageJob]:
    """The jobs for the products that are due, each after those that it waits for."""
    products: dict[str, list[Product]] = {}
    for product in due:
        products.setdefault(STAGES[product.stage].job.name, []).append(product)
    return [
        StageJob(
            job,
            tuple(products[name]),
            after=tuple(each for each in products if each in _inputs(products[name], recipe, due)),
            options=options_of(job, recipe, site),
            ranks=recipe.launch.merge_ranks if job.is_shared else 1,
        )
        for name, job in jobs().items()
        if name in products
    ]


def _inputs(made: Sequence[Product], recipe: Recipe, due: Iterable[Product]) -> set[str]:
    """Other jobs that must be done before these products can be made."""
    names = {each.name for each in due}
    found = {
        STAGES[each.stage].job.name
        for product in made
        for each in reads(product, recipe)
        if each.name in names
    }
    return found - {STAGES[product.stage].job.name for product in made}


def script_of(job: StageJob, recipe_file: Path) -> list[str]:
    """The script of slurm/ and its arguments."""
    command = [job.name] if job.job.script == Job.script else []
    products = [each.name for each in job.products] if job.job.is_array else []
    return [str(SCRIPTS / job.job.script), *command, str(recipe_file), *products]


def options_of(job: Job, recipe: Recipe, site: Site) -> SbatchOptions:
    """The recipe's options before the stage's and all jobs' of the site file, before ours."""
    name = job.name
    given = {**site.sbatch, **site.stages.get(name, {}), **recipe.launch.slurm.get(name, {})}
    fewest = re.match(r"[1-9]\d*", str(given.get("nodes", 1)))  # of `2-4`, 2
    ours: SbatchOptions = function(job.nodes_need)(recipe, int(fewest[0]) if fewest else 1)
    for option, others in SAID_OTHERWISE.items():
        if any(other in given for other in others):
            ours.pop(option, None)
    return {**ours, **given}
