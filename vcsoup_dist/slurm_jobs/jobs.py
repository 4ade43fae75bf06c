"""Which Slurm jobs make the products that are due, and what each asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.pipeline.graph import reads
from vcsoup_dist.pipeline.stages import STAGES, Job, function, jobs
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.sbatch_options import SbatchOptions
from vcsoup_dist.slurm_jobs.site import Site
from vcsoup_dist.turns import in_turns
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
    turn: int = 1
    """Where the chain has such a job several times, which of them it is."""

    @property
    def name(self) -> str:
        """As the recipe's `launch.slurm` calls it; of a later turn with its number."""
        return self.job.name if self.turn == 1 else f"{self.job.name}_{self.turn}"


def jobs_for(recipe: Recipe, site: Site, due: Sequence[Product]) -> list[StageJob]:
    """The jobs for the products that are due, each after those that it waits for."""
    turns = in_turns(due, jobs(), _job_name, lambda each: reads(each, recipe))
    found: list[StageJob] = []
    maker: dict[str, str] = {}  # of each product, the name of its job
    for name, products in turns:
        job = jobs()[name]
        turn = 1 + sum(each.job.name == name for each in found)
        read = {each.name for one in products for each in reads(one, recipe)}
        waits_for = {maker[each] for each in read & maker.keys()}
        found.append(
            StageJob(
                job,
                tuple(products),
                after=tuple(each.name for each in found if each.name in waits_for),
                options=options_of(job, recipe, site),
                ranks=recipe.launch.merge_ranks if job.is_shared else 1,
                turn=turn,
            )
        )
        maker |= {each.name: found[-1].name for each in products}
    return found


def _job_name(product: Product) -> str:
    return STAGES[product.stage].job.name


def script_of(job: StageJob, recipe_file: Path) -> list[str]:
    """The script of slurm/ and its arguments."""
    command = [job.job.name] if job.job.script == Job.script else []
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
