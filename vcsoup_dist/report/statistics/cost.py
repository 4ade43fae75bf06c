"""What training a method's policies took: steps, tokens, time and disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vcsoup_dist.records.step_metrics import StepMetrics

MEASURED = ("tokens", "step_seconds", "ranks", "gpus")


@dataclass(frozen=True)
class StepsTaken:
    """The optimizer steps of one policy; time is that of the steps alone, summed."""

    steps: int
    tokens: int
    """Of prompts and answers, each answer with its prompt."""
    seconds: float
    rank_hours: float
    gpu_hours: float
    """0 without GPUs."""


@dataclass(frozen=True)
class MethodCost:
    """The policies of one method, all seeds together; None where a log does not say it."""

    method: str
    policies: int
    steps: int
    tokens: int | None
    seconds: float | None
    rank_hours: float | None
    gpu_hours: float | None
    disk_bytes: int
    """Of its policies, and of its soups as far as they are kept."""


def steps_taken(metrics: Sequence[StepMetrics]) -> StepsTaken | None:
    """The sums over a policy's steps; None where one is missing, or was not measured."""
    whole = [each.step for each in metrics] == list(range(len(metrics)))
    if not metrics or not whole or not all(each.values.keys() >= {*MEASURED} for each in metrics):
        return None
    rows = [tuple(each.values[name] for name in MEASURED) for each in metrics]
    return StepsTaken(
        steps=len(rows),
        tokens=int(sum(tokens for tokens, *_ in rows)),
        seconds=sum(seconds for _, seconds, *_ in rows),
        rank_hours=sum(seconds * ranks for _, seconds, ranks, _ in rows) / 3600,
        gpu_hours=sum(seconds * gpus for _, seconds, _, gpus in rows) / 3600,
    )


def method_cost(
    method: str, steps: Sequence[int], taken: Sequence[StepsTaken | None], disk_bytes: int
) -> MethodCost:
    """The sum over policies, of which `steps` are known, and `taken` where they were measured."""
    known = [each for each in taken if each is not None]
    if len(known) < len(steps):
        return MethodCost(method, len(steps), sum(steps), None, None, None, None, disk_bytes)
    return MethodCost(
        method,
        policies=len(known),
        steps=sum(each.steps for each in known),
        tokens=sum(each.tokens for each in known),
        seconds=sum(each.seconds for each in known),
        rank_hours=sum(each.rank_hours for each in known),
        gpu_hours=sum(each.gpu_hours for each in known),
        disk_bytes=disk_bytes,
    )
