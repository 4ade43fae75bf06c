"""From the rewards of every soup's answers to what the report shows, as one pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vcsoup_dist.records.summary import Cell, MethodSummary, Row, Scale, Summary
from vcsoup_dist.report.statistics import fronts
from vcsoup_dist.report.statistics.connectivity import find_edges
from vcsoup_dist.report.statistics.evaluated import Evaluated, Shared, check_shared, same_soup
from vcsoup_dist.report.statistics.intervals import bootstrap_mean
from vcsoup_dist.souping.grids import weight_of_base

BOOTSTRAP_SEED = 0  # one for all rows, so that all are resampled on the same prompts


def summarise(evaluated: Sequence[Evaluated], *, resamples: int, confidence: float) -> Summary:
    """Average, scale and compare all evaluations of a run; deterministic.

    Evaluations of one method and one lambda become one row, whatever their seeds. Fronts and
    picks are those of the rows; hypervolumes are taken for each seed and then averaged, theta_0
    left out. Raises what `check_shared` raises.
    """
    shared = check_shared(evaluated)
    values, groups = shared.values, same_soup(evaluated, shared.axes)
    every = np.array([[one.mean(value) for value in values] for one in evaluated])
    low, high = fronts.bounds(every)
    reference = fronts.reference_point(every)
    reference_scaled = fronts.reference_point(fronts.normalise(every, low, high))
    by_value = [
        dict(zip(values, map(float, numbers), strict=True))
        for numbers in (low, high, reference, reference_scaled)
    ]
    scale = Scale(*by_value)
    rows = _rows(groups, shared, scale, resamples, confidence)
    methods = list(dict.fromkeys(row.method for row in rows if row.method is not None))
    return Summary(
        values=values,
        axes=shared.axes,
        prompts=shared.prompts,
        resamples=resamples,
        confidence=confidence,
        scale=scale,
        rows=tuple(rows),
        methods=tuple(_method(method, rows, evaluated, scale) for method in methods),
        front=tuple(i for i, row in enumerate(rows) if row.on_front),
        balanced=fronts.balanced(_scaled(rows)),
        edges=tuple(find_edges(evaluated, shared.axes, resamples, confidence)),
    )


def _rows(
    groups: Sequence[Sequence[Evaluated]],
    shared: Shared,
    scale: Scale,
    resamples: int,
    confidence: float,
) -> list[Row]:
    """One row per group of evaluations of the same soup."""
    low, high = ([side[value] for value in shared.values] for side in (scale.low, scale.high))
    intervals = [
        [_interval(group, value, resamples, confidence) for value in shared.values]
        for group in groups
    ]
    points = np.array([[mean for mean, _, _ in row] for row in intervals])
    scaled = fronts.normalise(points, low, high)
    front, own_front = fronts.nondominated(points), np.zeros(len(groups), dtype=bool)
    for method in {group[0].method for group in groups} - {None}:
        own = np.array([group[0].method == method for group in groups])
        own_front[own] = fronts.nondominated(points[own])
    return [
        Row(
            method=group[0].method,
            weights=_ordered(group[0].weights, shared.axes),
            names=tuple(one.name for one in group),
            seeds=tuple(one.seed for one in group if one.seed is not None),
            cells={
                value: Cell(
                    *intervals[i][j],
                    seed_spread=_spread([one.mean(value) for one in group]),
                    scaled=float(scaled[i, j]),
                )
                for j, value in enumerate(shared.values)
            },
            on_front=bool(front[i]),
            on_method_front=bool(own_front[i]),
            unfinished=_mean([one.unfinished for one in group]),
        )
        for i, group in enumerate(groups)
    ]


def _method(
    method: str, rows: Sequence[Row], evaluated: Sequence[Evaluated], scale: Scale
) -> MethodSummary:
    indices = [i for i, row in enumerate(rows) if row.method == method]
    own, values = [rows[i] for i in indices], list(scale.low)
    of_seed: dict[int, list[list[float]]] = {}
    for one in evaluated:
        if one.method == method and one.seed is not None:
            of_seed.setdefault(one.seed, []).append([one.mean(value) for value in values])
    low, high, reference, reference_scaled = (
        [side[value] for value in values]
        for side in (scale.low, scale.high, scale.reference, scale.reference_scaled)
    )
    volumes = {
        seed: fronts.hypervolume(fronts.normalise(of_seed[seed], low, high), reference_scaled)
        for seed in sorted(of_seed)
    }
    return MethodSummary(
        method=method,
        rows=tuple(indices),
        front=tuple(i for i in indices if rows[i].on_method_front),
        balanced=indices[fronts.balanced(_scaled(own))],
        hypervolume=float(np.mean(list(volumes.values()))),
        hypervolume_spread=_spread(list(volumes.values())),
        hypervolume_by_seed=volumes,
        hypervolume_original=float(
            np.mean([fronts.hypervolume(points, reference) for points in of_seed.values()])
        ),
        mean_inner_product=_mean_inner_product(own, values),
    )


def _mean_inner_product(rows: Sequence[Row], values: Sequence[str]) -> float | None:
    """Of the rows whose weights sum to 1: only they say how much each value is to count."""
    own = [row for row in rows if row.weights and not weight_of_base(list(row.weights.values()))]
    weights = [[(row.weights or {}).get(value, 0.0) for value in values] for row in own]
    return fronts.mean_inner_product(_scaled(own), weights) if own else None


def _ordered(weights: Mapping[str, float] | None, axes: Sequence[str]) -> dict[str, float] | None:
    return None if weights is None else {axis: float(weights[axis]) for axis in axes}


def _scaled(rows: Sequence[Row]) -> list[list[float]]:
    return [[cell.scaled for cell in row.cells.values()] for row in rows]


def _interval(
    group: Sequence[Evaluated], value: str, resamples: int, confidence: float
) -> tuple[float, float, float]:
    over_seeds = np.mean([one.rewards[value] for one in group], axis=0, dtype=np.float64)
    return bootstrap_mean(over_seeds, resamples, confidence, BOOTSTRAP_SEED)


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def _spread(numbers: Sequence[float]) -> float | None:
    return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
