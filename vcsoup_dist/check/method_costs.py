"""What every method will take, before it runs: policies, steps, tokens, time and disk.

Time is known where a policy of the run was trained already: then a step takes as long as its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from vcsoup_dist.check.cost import Cost
from vcsoup_dist.check.steps import Steps
from vcsoup_dist.recipe import Recipe, Training
from vcsoup_dist.report.costs import logged_steps
from vcsoup_dist.report.statistics.cost import StepsTaken
from vcsoup_dist.workspace import Product, Workspace

UNKNOWN = "unknown"


@dataclass(frozen=True)
class PlannedCost:
    """Of one method, all its policies and seeds together; None where it is not known yet."""

    method: str
    policies: int
    steps: int | None
    """At most, until the pairs are counted."""
    tokens: int | None
    """About: of the text of the pairs that are trained on, the prompt once."""
    seconds: float | None
    gpu_hours: float | None
    """0 without GPUs."""
    rank_hours: float | None
    disk_bytes: int | None
    """Of policies and soups that are kept."""


def plan_costs(
    recipe: Recipe,
    workspace: Workspace,
    plan: Sequence[Product],
    steps: Sequence[Steps],
    cost: Cost,
) -> list[PlannedCost]:
    """Of every method; steps: of the plan's policies, seeds alike."""
    policies = [each for each in plan if each.stage == "train"]
    measured = [
        taken
        for each in policies
        if workspace.is_made(each) and (taken := logged_steps(workspace, each))
    ]
    of_pair = cost.tokens / cost.pairs if cost.tokens and cost.pairs else None
    model = None
    if cost.parameters is not None:
        model = cost.parameters * (2 if recipe.training.dtype == "bf16" else 4)
    soups = [each for each in plan if each.stage == "merge" and recipe.keep.soups]
    found = []
    for method in dict.fromkeys(str(each.method) for each in policies):
        own = [each for each in steps if each.name.startswith(f"policies/{method}/")]
        seeds = len(recipe.seeds)
        models = len(own) * seeds + sum(each.method == method for each in soups)
        found.append(planned_cost(method, own, seeds, of_pair, measured, model and model * models))
    return found


def planned_cost(
    method: str,
    own: Sequence[Steps],
    seeds: int,
    tokens_of_pair: float | None,
    measured: Sequence[StepsTaken],
    disk_bytes: int | None,
) -> PlannedCost:
    """Of a method's policies; measured: some of the run, whose steps are a sample of all."""
    counts = [each.steps for each in own]
    steps = None if None in counts else seeds * sum(count for count in counts if count is not None)
    tokens = None
    if steps is not None and tokens_of_pair is not None:
        pairs = sum((each.steps or 0) * _pairs_of_step(each.training) for each in own)
        tokens = round(seeds * pairs * tokens_of_pair)

    def scaled(total: float) -> float | None:
        taken = sum(each.steps for each in measured)
        return total / taken * steps if taken and steps is not None else None

    return PlannedCost(
        method=method,
        policies=seeds * len(own),
        steps=steps,
        tokens=tokens,
        seconds=scaled(sum(each.seconds for each in measured)),
        gpu_hours=scaled(sum(each.gpu_hours for each in measured)),
        rank_hours=scaled(sum(each.rank_hours for each in measured)),
        disk_bytes=disk_bytes,
    )


def _pairs_of_step(training: Training) -> float:
    """Answers alone are half a pair each."""
    return training.pairs_per_step / (2 if training.objective == "sft" else 1)


def costs_table(found: Sequence[PlannedCost]) -> Table:
    """A row each."""
    on_gpus = any(each.gpu_hours for each in found)
    hours = "GPU-hours" if on_gpus else "rank-hours on CPUs"
    table = Table(title="cost of training each method, about", title_justify="left")
    for column in ("method", "policies", "steps", "tokens of text", "seconds", hours, "GB"):
        name = column == "method"
        table.add_column(column, overflow="fold", no_wrap=name, justify="left" if name else "right")
    for each in found:
        taken = each.gpu_hours if on_gpus else each.rank_hours
        table.add_row(
            each.method,
            f"{each.policies:,}",
            UNKNOWN if each.steps is None else f"{each.steps:,}",
            UNKNOWN if each.tokens is None else f"{each.tokens:,}",
            "-" if each.seconds is None else f"{each.seconds:,.0f}",
            "-" if taken is None else f"{taken:,.3g}",
            UNKNOWN if each.disk_bytes is None else f"{each.disk_bytes / 1e9:,.3f}",
        )
    if not any(each.seconds for each in found):
        table.caption = "time is known once a policy of the run is trained"
    return table
