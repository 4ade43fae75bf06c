"""What every stage of a run took, from what the run directory remembers of its executions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from vcsoup_dist.records.history import Execution, read_history, time_taken
from vcsoup_dist.report.costs import step_log
from vcsoup_dist.workspace import Product, Workspace


@dataclass(frozen=True)
class StageTime:
    """All executions of a stage, those that failed and those whose products were made anew too."""

    stage: str
    executions: int
    killed: int
    """Executions that were killed: how long they took is not known, and counts as 0."""
    seconds: float
    """In which at least one of them ran."""
    gpu_hours: float | None
    """That they held, loading and waiting included; None where a record does not say it."""


def stage_times(workspace: Workspace, product: Product) -> list[StageTime]:
    """Of every stage before the report, in the order in which they began."""
    history = read_history(workspace.root, during=product.stage)
    models = [*product.inputs_of("train"), *product.inputs_of("sft")]
    logs = [log for each in models if (log := step_log(workspace, each))]
    of_ranks = max((log[-1].values.get("gpus", 0.0) for log in logs), default=None)
    stages = dict.fromkeys(each.stage for each in history if each.stage != product.stage)
    return [
        stage_time([each for each in history if each.stage == stage], of_ranks, time.time())
        for stage in stages
    ]


def stage_time(executions: Sequence[Execution], of_ranks: float | None, now: float) -> StageTime:
    """What a stage's executions took; of_ranks: GPUs of training ranks, None where unknown."""
    hours: float | None = 0.0
    for each in executions:
        gpus = of_ranks if each.gpus == "ranks" else each.gpus
        ended = now if each.running else each.ended
        if hours is None or gpus is None or isinstance(gpus, str):
            hours = None
        elif ended is not None:
            hours += max(0.0, ended - each.began) * gpus / 3600
    return StageTime(
        stage=executions[0].stage,
        executions=len(executions),
        killed=sum(each.was_killed for each in executions),
        seconds=time_taken(executions, now),
        gpu_hours=hours,
    )
