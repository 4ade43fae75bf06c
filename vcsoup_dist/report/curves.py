"""Training curves of every policy, from the logs of their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vcsoup_dist.records.step_metrics import StepMetrics
from vcsoup_dist.report.costs import step_log
from vcsoup_dist.workspace import Product, Workspace

SHOWN = ("loss", "margin", "accuracy")
POINTS = 100
"""Of a curve at most, each the mean of steps that follow one another."""

Line = tuple[list[float], list[float]]
"""Steps taken, and a metric's mean after them."""


@dataclass(frozen=True)
class Curve:
    """One policy's training."""

    method: str
    policy: str
    """The value, or the trade-off, that it is trained for."""
    seed: int
    train: dict[str, Line]
    """Metric of `SHOWN` -> its line, of those that the objective has."""
    heldout: dict[str, Line]
    """The same of held-out pairs, at the steps where they were measured."""


def curves(workspace: Workspace, product: Product) -> list[Curve]:
    """Of every policy that a report is made from, and whose log of steps is there."""
    found = []
    for policy in product.inputs_of("train"):
        if log := step_log(workspace, policy):
            name = policy.value or policy.name.split("/")[2]
            found.append(curve(str(policy.method), name, policy.seed or 0, log))
    return found


def curve(method: str, policy: str, seed: int, log: Sequence[StepMetrics]) -> Curve:
    """The curve of a policy's steps."""
    each = -(-len(log) // POINTS)
    return Curve(
        method,
        policy,
        seed,
        {name: _means(line, each) for name in SHOWN if (line := _line(log, name))[0]},
        {name: line for name in SHOWN if (line := _line(log, f"heldout_{name}"))[0]},
    )


def _line(log: Sequence[StepMetrics], name: str) -> Line:
    own = [each for each in log if np.isfinite(each.values.get(name, np.nan))]
    return [each.step + 1.0 for each in own], [each.values[name] for each in own]


def _means(line: Line, each: int) -> Line:
    starts = range(0, len(line[0]), each)
    steps, values = (
        [float(np.mean(numbers[start : start + each])) for start in starts] for numbers in line
    )
    return steps, values
