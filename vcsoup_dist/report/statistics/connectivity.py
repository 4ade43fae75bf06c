"""Linear mode connectivity in rewards: the line between two policies against the straight line.

Rewarded Soups' test: two policies are linearly connected where a soup between them earns at least
what the straight line between the end points' rewards promises. The largest of several drops is
above 0 also where there is nothing but noise, so a barrier is a drop whose band lies above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vcsoup_dist.records.summary import Curvature, Drop, Edge, LossCurve
from vcsoup_dist.report.statistics.bands import simultaneous_band
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.souping.grids import weight_of_base

Array = NDArray[np.float64]

NO_WEIGHT = 1e-9  # a soup has no part of a policy with a smaller weight
ROUNDING = 1e-12  # relative to the rewards; a smaller drop is rounding
BAND_SEED = 0  # one for all edges, so that all are resampled on the same prompts


def drops_below_line(positions: ArrayLike) -> Array:
    """[T-2, T]: times the rewards at `positions` [T], how far those between the ends lie below
    the straight line: (1 - t) r(0) + t r(1) - r(t). Negative above it.

    ValueError unless positions rise from 0 (one policy) to 1 (the other), with some between.
    """
    at = _checked(positions)
    rows = -np.eye(len(at))
    rows[:, 0] += 1 - at
    rows[:, -1] += at
    return rows[1:-1]


def second_differences(positions: ArrayLike) -> Array:
    """[T-2, T]: times the rewards at `positions` [T], the second divided differences.

    2 [(r_k+1 - r_k) / (t_k+1 - t_k) - (r_k - r_k-1) / (t_k - t_k-1)] / (t_k+1 - t_k-1): the second
    derivative of the parabola through three neighbours, in rewards per unit of position squared.
    Positive where the rewards sag. ValueError as for `drops_below_line`.
    """
    at = _checked(positions)
    step = np.diff(at)
    rows = np.zeros((len(at) - 2, len(at)))
    for k in range(1, len(at) - 1):
        span = at[k + 1] - at[k - 1]
        rows[k - 1, k - 1] = 2 / (step[k - 1] * span)
        rows[k - 1, k + 1] = 2 / (step[k] * span)
        rows[k - 1, k] = -2 / (step[k - 1] * step[k])
    return rows


def drop_of(positions: ArrayLike, rewards: ArrayLike, resamples: int, confidence: float) -> Drop:
    """How far rewards [S, T, P] (seeds, positions, prompts) lie below the straight line."""
    earned = np.asarray(rewards, float)
    band = simultaneous_band(drops_below_line(positions) @ earned, resamples, confidence, BAND_SEED)
    is_barrier = bool(band.low.max() > ROUNDING * np.abs(earned).max())
    return Drop(
        mean=tuple(band.mean.tolist()),
        low=tuple(band.low.tolist()),
        high=tuple(band.high.tolist()),
        worst=int((band.low if is_barrier else band.mean).argmax()),
        is_barrier=is_barrier,
    )


def curvature_of(
    positions: ArrayLike, rewards: ArrayLike, resamples: int, confidence: float
) -> Curvature:
    """The largest second difference of rewards [S, T, P] (seeds, positions, prompts), in size.

    Where a band holds all second differences, the largest lies between the largest of the sizes
    that it cannot exclude at each position, at the least and at the most.
    """
    earned = np.asarray(rewards, float)
    band = simultaneous_band(
        second_differences(positions) @ earned, resamples, confidence, BAND_SEED
    )
    largest = int(np.abs(band.mean).argmax())
    return Curvature(
        value=float(band.mean[largest]),
        at=float(np.asarray(positions, float)[largest + 1]),
        low=float(np.maximum(band.low, -band.high).max(initial=0.0)),
        high=float(np.maximum(np.abs(band.low), np.abs(band.high)).max()),
    )


def find_edges(
    evaluated: Sequence[Evaluated], axes: Sequence[str], resamples: int, confidence: float
) -> list[Edge]:
    """One edge per method and pair of policies, where both and a soup between were evaluated.

    Over the seeds that all positions of the edge have. Policies that were trained for a trade-off
    lie on no line. None where one prompt is all there is, of which no band can be drawn.
    """
    if any(len(each) < 2 for one in evaluated[:1] for each in one.rewards.values()):
        return []
    edges = []
    soups = [one for one in evaluated if one.method is not None and one.is_soup]
    for method in dict.fromkeys(one.method for one in soups):
        own = [one for one in soups if one.method == method]
        for start, end in combinations(axes, 2):
            along = _along(own, start, end)
            if len(along) < 3 or not {0.0, 1.0} <= along.keys():
                continue
            if seeds := sorted(set.intersection(*map(set, along.values()))):
                models = [[along[at][seed] for at in sorted(along)] for seed in seeds]
                edges.append(_edge((start, end), sorted(along), models, resamples, confidence))
    return edges


def _along(
    evaluated: Sequence[Evaluated], start: str, end: str
) -> dict[float, dict[int, Evaluated]]:
    """Position -> seed -> the soup of these two policies alone."""
    along: dict[float, dict[int, Evaluated]] = {}
    for one in evaluated:
        if one.weights is None or one.seed is None or weight_of_base(list(one.weights.values())):
            continue  # theta_0, or beyond the simplex
        parts = {axis for axis, weight in one.weights.items() if abs(weight) > NO_WEIGHT}
        if parts <= {start, end} and min(one.weights.values()) >= -NO_WEIGHT:
            position = round(float(one.weights[end]), 9)  # grids and lists differ in the last bits
            along.setdefault(position, {})[one.seed] = one
    return along


def _edge(
    policies: tuple[str, str],
    positions: Sequence[float],
    models: Sequence[Sequence[Evaluated]],
    resamples: int,
    confidence: float,
) -> Edge:
    """The edge of models [S, T] by seed and position."""
    first = models[0][0]
    rewards = {
        value: np.array([[one.rewards[value] for one in row] for row in models], dtype=np.float64)
        for value in first.rewards
    }
    means = {value: each.mean(axis=(0, 2)) for value, each in rewards.items()}
    at = np.asarray(positions, float)
    return Edge(
        method=first.method or "",
        start=policies[0],
        end=policies[1],
        seeds=tuple(row[0].seed for row in models if row[0].seed is not None),
        positions=tuple(positions),
        rewards={value: tuple(each.tolist()) for value, each in means.items()},
        line={
            value: tuple(((1 - at) * each[0] + at * each[-1]).tolist())
            for value, each in means.items()
        },
        drop={v: drop_of(at, each, resamples, confidence) for v, each in rewards.items()},
        curvature={v: curvature_of(at, each, resamples, confidence) for v, each in rewards.items()},
        losses=_losses(at, models, resamples, confidence),
    )


def _losses(
    positions: Array, models: Sequence[Sequence[Evaluated]], resamples: int, confidence: float
) -> dict[str, LossCurve]:
    """Of the values of which all models [S, T] have the losses of two pairs or more."""
    found = {}
    for value, first in models[0][0].losses.items():
        if len(first) > 1 and all(value in one.losses for row in models for one in row):
            losses = np.array([[one.losses[value] for one in row] for row in models], float)
            means = losses.mean(axis=(0, 2))
            rise = drop_of(positions, -losses, resamples, confidence)
            found[value] = LossCurve(tuple(means.tolist()), len(first), rise)
    return found


def _checked(positions: ArrayLike) -> Array:
    at = np.asarray(positions, dtype=np.float64)
    if at.ndim != 1 or len(at) < 3 or at[0] != 0 or at[-1] != 1 or (np.diff(at) <= 0).any():
        raise ValueError(f"positions must rise from 0 to 1, with one between, got {at.tolist()}")
    return at
