"""Methods as wholes: their hypervolumes, and all of them at equal numbers of candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.records.summary import Comparisons, MethodSummary, Row, Scale
from vcsoup_dist.report.statistics import fronts
from vcsoup_dist.report.statistics.comparisons import compare_all
from vcsoup_dist.report.statistics.evaluated import Evaluated, Shared
from vcsoup_dist.report.statistics.thinning import nearest
from vcsoup_dist.report.statistics.volumes import Volumes, volumes_of
from vcsoup_dist.souping.grids import weight_of_base

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """What one seed of a method was evaluated with."""

    weights: Array
    """[C, A]"""
    rewards: Array
    """[C, V, P]"""


def candidates_of(
    evaluated: Sequence[Evaluated], method: str, shared: Shared
) -> dict[int, Candidates]:
    """By seed, both in rising order."""
    found = {}
    for seed in sorted({one.seed for one in evaluated if one.method == method}, key=_whole):
        own = [one for one in evaluated if (one.method, one.seed) == (method, seed)]
        weights = [[(one.weights or {})[axis] for axis in shared.axes] for one in own]
        rewards = [[one.rewards[value] for value in shared.values] for one in own]
        found[_whole(seed)] = Candidates(np.array(weights), np.array(rewards, dtype=np.float64))
    return found


def volumes_by_method(
    candidates: Mapping[str, Mapping[int, Candidates]], shares: Array, scale: Scale
) -> dict[str, Volumes]:
    """Of each method's seeds, all candidates together; shares [P, B] of `prompt_shares`."""
    return {
        method: volumes_of([each.rewards for each in seeds.values()], shares, scale)
        for method, seeds in candidates.items()
    }


def compare_methods(
    candidates: Mapping[str, Mapping[int, Candidates]],
    whole: Mapping[str, Volumes],
    shares: Array,
    scale: Scale,
    confidence: float,
) -> Comparisons | None:
    """All methods at the number of candidates of the one with the fewest; `whole`: of all of them.

    Its weights are those at which the others are compared too, or the nearest that they have.
    """
    if not candidates:
        return None
    thin, like = thinned(candidates)
    volumes = {
        method: whole[method]
        if all(len(seeds[s].weights) == len(each.weights) for s, each in thin[method].items())
        else volumes_by_method({method: thin[method]}, shares, scale)[method]
        for method, seeds in candidates.items()
    }
    order = sorted(volumes, key=lambda method: -volumes[method].corrected)
    first = next(iter(thin[like].values()))
    return Comparisons(
        candidates=len(first.weights),
        like=like,
        hypervolumes={method: volumes[method].shown for method in order},
        pairs=compare_all(volumes, confidence),
    )


def thinned(
    candidates: Mapping[str, Mapping[int, Candidates]],
) -> tuple[dict[str, dict[int, Candidates]], str]:
    """Every seed of every method with as many candidates as the one with the fewest; its method.

    The candidates are those nearest to its weights.
    """
    fewest, like = min(
        ((each, method) for method, seeds in candidates.items() for each in seeds.values()),
        key=lambda found: len(found[0].weights),
    )
    found: dict[str, dict[int, Candidates]] = {}
    for method, seeds in candidates.items():
        for seed, each in seeds.items():
            kept = nearest(fewest.weights, each.weights)
            thin = Candidates(each.weights[kept], each.rewards[kept])
            found.setdefault(method, {})[seed] = thin
    return found, like


def method_summary(
    method: str,
    rows: Sequence[Row],
    seeds: Mapping[int, Candidates],
    volumes: Volumes,
    scale: Scale,
    confidence: float,
) -> MethodSummary:
    """One method's candidates together; `rows` are those of all."""
    indices = [i for i, row in enumerate(rows) if row.method == method]
    own, values = [rows[i] for i in indices], list(scale.low)
    reference = list(scale.reference.values())
    low, high = volumes.interval(confidence)
    original = [
        fronts.hypervolume(each.rewards.mean(axis=-1), reference) for each in seeds.values()
    ]
    return MethodSummary(
        method=method,
        rows=tuple(indices),
        front=tuple(i for i in indices if rows[i].on_method_front),
        balanced=indices[fronts.balanced(scaled(own))],
        hypervolume=float(volumes.measured.mean()),
        hypervolume_bias=volumes.bias,
        hypervolume_low=low,
        hypervolume_high=high,
        hypervolume_spread=float(volumes.measured.std(ddof=1)) if len(seeds) > 1 else None,
        hypervolume_by_seed=dict(zip(seeds, map(float, volumes.measured), strict=True)),
        hypervolume_original=float(np.mean(original)),
        mean_inner_product=_mean_inner_product(own, values),
    )


def scaled(rows: Sequence[Row]) -> list[list[float]]:
    """[S, V]: their values on the scale."""
    return [[cell.scaled for cell in row.cells.values()] for row in rows]


def _mean_inner_product(rows: Sequence[Row], values: Sequence[str]) -> float | None:
    """Of the rows whose weights sum to 1: only they say how much each value is to count."""
    own = [row for row in rows if row.weights and not weight_of_base(list(row.weights.values()))]
    weights = [[(row.weights or {}).get(value, 0.0) for value in values] for row in own]
    return fronts.mean_inner_product(scaled(own), weights) if own else None


def _whole(seed: int | None) -> int:
    assert seed is not None  # only theta_0 has none, which has no method
    return seed
