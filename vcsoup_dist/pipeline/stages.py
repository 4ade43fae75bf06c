"""THE table of stages: what each makes, by which command, in which Slurm job.

It names functions as `package.module:function` and imports none, so that the command line can read
it in no time. A new stage is one `Stage` here and one package; `run`, `status`, `clean` and
`submit` know stages from here alone.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Job:
    """The Slurm job that makes what is due of one stage, or of several that go together."""

    name: str
    """As `launch.slurm` of a recipe and `stages` of the site file call it."""
    script: str = "on_one_node.sh"
    """File of slurm/; `on_one_node.sh` runs the `vcsoup` command of the job's name."""
    nodes_need: str = "vcsoup_dist.slurm_jobs.resources:one_process"
    """Function (recipe, nodes) -> the `sbatch` options that its ranks or actors need."""
    runs: Literal["command", "ranks", "actors"] = "command"
    """What has GPUs where there are some: training ranks, one each, or Ray actors, as they ask."""
    is_array: bool = False
    """A task per product, whose names are the script's last arguments."""
    is_shared: bool = False
    """`launch.merge_ranks` tasks share it, and one more job publishes with `--finalise`."""


@dataclass(frozen=True)
class Stage:
    """A row of the table. Rows stand in the order in which stages run; one may come again, where
    its products read those of a later row."""

    name: str
    products: str
    """Function (graph) -> None that adds what a recipe asks of the stage: `pipeline.products`."""
    make: str
    """Function (recipe, workspace, products) -> None that makes those that are due."""
    command: str
    """The `vcsoup` command that makes its products; `{value}` is the policy's."""
    job: Job
    format: int = 1
    """Raised when the output changes for the same recipe, so that old products are made anew."""
    along: tuple[str, ...] = ()
    """Stages whose missing products its command makes first, where its own need them."""
    kept_by: str | None = None
    """Key of `keep` that gives its products up: then they are made only where one is read."""
    is_virtual: bool = False
    """Where `keep` gives its products up, readers take their inputs instead."""
    logs_steps: bool = False
    """It writes a log of optimizer steps, of which `status` shows the last."""
    disk: str | None = None
    """Function (recipe, due products, bytes of a model) -> bytes to read and to write."""


SCORE = Job("score", "score.sh", "vcsoup_dist.slurm_jobs.resources:reward_actors", runs="actors")
FILTER = Job("filter")
REFERENCE = Job("reference", "reference.sh", "vcsoup_dist.slurm_jobs.resources:ranks", runs="ranks")
TRAIN = Job(
    "train", "train_value.sh", "vcsoup_dist.slurm_jobs.resources:ranks",
    runs="ranks", is_array=True,
)  # fmt: skip
MERGE = Job("merge", "merge.sh", is_shared=True)
EVALUATE = Job(
    "evaluate", "evaluate.sh", "vcsoup_dist.slurm_jobs.resources:evaluation_actors", runs="actors"
)
REPORT = Job("report")

PRODUCTS = "vcsoup_dist.pipeline.products"
TRAINING = "vcsoup_dist.training.stage"
COST = "vcsoup_dist.check.cost"

ROWS = (
    Stage("read", f"{PRODUCTS}:pairs", "vcsoup_dist.scoring.stage:read", "score", SCORE, format=7),
    Stage(
        "score", f"{PRODUCTS}:scores", "vcsoup_dist.scoring.stage:score", "score", SCORE,
        format=6, along=("read",),
    ),
    Stage(
        "filter", f"{PRODUCTS}:filtered_sets", "vcsoup_dist.consistency.stage:make", "filter",
        FILTER, format=6,
    ),
    Stage("union", f"{PRODUCTS}:union", "vcsoup_dist.union.stage:make", "filter", FILTER),
    Stage("tokens", f"{PRODUCTS}:tokens", "vcsoup_dist.tokens.stage:make", "filter", FILTER),
    Stage(
        "in_context", f"{PRODUCTS}:in_context", "vcsoup_dist.in_context.stage:make", "filter",
        FILTER,
    ),
    Stage(
        "sft", f"{PRODUCTS}:theta_0", f"{TRAINING}:make_theta_0", "sft", REFERENCE, format=2,
        along=("tokens",), logs_steps=True, disk=f"{COST}:training_bytes",
    ),
    Stage(
        "reference", f"{PRODUCTS}:references", f"{TRAINING}:make_references", "reference",
        REFERENCE, format=5, along=("tokens", "sft"), kept_by="reference",
    ),
    Stage(
        "train", f"{PRODUCTS}:policies", f"{TRAINING}:make_policies", "train {value}", TRAIN,
        format=4, along=("tokens", "in_context", "sft", "reference"), logs_steps=True,
        disk=f"{COST}:training_bytes",
    ),
    Stage(
        "merge", f"{PRODUCTS}:soups", "vcsoup_dist.souping.stage:make", "merge", MERGE,
        kept_by="soups", is_virtual=True, disk=f"{COST}:merge_bytes",
    ),
    Stage(
        "evaluate", f"{PRODUCTS}:evaluations", "vcsoup_dist.evaluation.stage:make", "evaluate",
        EVALUATE, format=4, disk=f"{COST}:evaluation_bytes",
    ),
    Stage(
        "report", f"{PRODUCTS}:reports", "vcsoup_dist.report.stage:make", "report", REPORT,
        format=7,
    ),
)  # fmt: skip

STAGES = {stage.name: stage for stage in ROWS}
"""The rows by name, in their order."""


def function(reference: str) -> Any:
    """The function that a row names; its module is imported now."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def jobs() -> dict[str, Job]:
    """The jobs by name, in the order of the stages."""
    return {stage.job.name: stage.job for stage in STAGES.values()}


def job_names() -> tuple[str, ...]:
    """What `launch.slurm` of a recipe, and `stages` of the site file, may have as keys."""
    return tuple(jobs())


def stages_of(command: str) -> list[Stage]:
    """The stages that a command makes; of `train helpful`, give `train`."""
    return [each for each in STAGES.values() if each.command.partition(" ")[0] == command]
