"""One row per candidate: its means over seeds and prompts, with intervals, and against theta_0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.records.summary import AgainstStart, Cell, Row, Scale
from vcsoup_dist.report.statistics import fronts
from vcsoup_dist.report.statistics.against_start import against_start
from vcsoup_dist.report.statistics.crossed import mean_errors
from vcsoup_dist.report.statistics.evaluated import Evaluated, Shared

Array = NDArray[np.float64]


def make_rows(
    groups: Sequence[Sequence[Evaluated]], shared: Shared, scale: Scale, confidence: float
) -> list[Row]:
    """One row per group of evaluations of the same candidate."""
    low, high = ([side[value] for value in shared.values] for side in (scale.low, scale.high))
    samples = [{value: samples_of(group, value) for value in shared.values} for group in groups]
    points = np.array([[float(each.mean()) for each in row.values()] for row in samples])
    scaled = fronts.normalise(points, low, high)
    front, own_front = fronts.nondominated(points), np.zeros(len(groups), dtype=bool)
    for method in {group[0].method for group in groups} - {None}:
        own = np.array([group[0].method == method for group in groups])
        own_front[own] = fronts.nondominated(points[own])
    start = next((row for row, group in zip(samples, groups, strict=True) if _is_start(group)), {})
    return [
        Row(
            method=group[0].method,
            weights=_ordered(group[0].weights, shared.axes),
            names=tuple(one.name for one in group),
            seeds=tuple(one.seed for one in group if one.seed is not None),
            cells={
                value: _cell(
                    samples[i][value],
                    float(scaled[i, j]),
                    start.get(value) if group[0].method is not None else None,
                    confidence,
                )
                for j, value in enumerate(shared.values)
            },
            on_front=bool(front[i]),
            on_method_front=bool(own_front[i]),
            unfinished=_mean([one.unfinished for one in group]),
        )
        for i, group in enumerate(groups)
    ]


def gains_of(
    group: Sequence[Evaluated], start: Evaluated | None, confidence: float
) -> dict[str, AgainstStart]:
    """A candidate against theta_0 by value, with intervals that hold for all values together.

    Bonferroni's: each of n values has 1 - (1 - confidence) / n. Empty without theta_0, or for it.
    """
    if start is None or _is_start(group):
        return {}
    of_one = 1 - (1 - confidence) / len(start.rewards)
    return {
        value: against_start(samples_of(group, value), np.asarray(rewards, np.float64), of_one)
        for value, rewards in start.rewards.items()
    }


def samples_of(group: Sequence[Evaluated], value: str) -> Array:
    """[S, P] in double precision."""
    return np.array([one.rewards[value] for one in group], dtype=np.float64)


def _cell(samples: Array, scaled: float, start: Array | None, confidence: float) -> Cell:
    mean = float(samples.mean())
    width = float(mean_errors([samples]).half_width(confidence))
    known = bool(np.isfinite(width))
    return Cell(
        mean=mean,
        low=mean - width if known else None,
        high=mean + width if known else None,
        seed_spread=float(samples.mean(axis=1).std(ddof=1)) if len(samples) > 1 else None,
        scaled=scaled,
        against_start=None if start is None else against_start(samples, start[0], confidence),
    )


def _is_start(group: Sequence[Evaluated]) -> bool:
    return group[0].method is None


def _ordered(weights: Mapping[str, float] | None, axes: Sequence[str]) -> dict[str, float] | None:
    return None if weights is None else {axis: float(weights[axis]) for axis in axes}


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None
