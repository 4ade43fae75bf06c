"""Pareto fronts, hypervolume and picks among soups, as pure functions of arrays.

`points` is always [S, N]: S soups, N values, every number finite. "Better" is larger; a reward
where lower is better carries its sign before it comes here.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MARGIN = 0.1  # of each value's range, from the worst point down to the reference point
ROUNDING = 1e-12  # relative to the numbers; a smaller range is rounding and counts as 0


def nondominated(points: ArrayLike, maximised: bool | Sequence[bool] = True) -> NDArray[np.bool_]:
    """Mask [S] of the points that no other point beats: the exact Pareto front, without slack.

    p dominates q where p is at least as good in every value and better in one. Equal points do
    not dominate each other, so all copies of a point on the front are kept. `maximised` says, for
    all values or for each, whether larger is better.
    """
    mask = moocore.is_nondominated(_checked(points), maximise=maximised, keep_weakly=True)
    return np.asarray(mask, dtype=np.bool_)


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume between the reference point [N] and the points, each value being maximised.

    Exact. In the product of the values' units; a point that is not better than the reference in
    every value adds nothing.
    """
    # moocore minimises by default.
    return float(moocore.hypervolume(_checked(points), ref=np.asarray(reference), maximise=True))


def reference_point(points: ArrayLike) -> Array:
    """[N]: componentwise minimum less `MARGIN` of the range, over all points that are compared.

    The margin gives the worst point of every value a volume of its own. A value on which all
    points agree has no range: it counts as 1, so that its volume is not zero.
    """
    low, high = bounds(points)
    span = _span(low, high)
    return low - MARGIN * np.where(span > 0, span, 1.0)


def bounds(points: ArrayLike) -> tuple[Array, Array]:
    """Componentwise minimum and maximum, each [N], of at least one point."""
    checked = _checked(points)
    return checked.min(axis=0), checked.max(axis=0)


def normalise(points: ArrayLike, low: ArrayLike, high: ArrayLike) -> Array:
    """[S, N]: `low` becomes 0 and `high` 1 in each value; other points lie beyond.

    A value with low = high becomes 1 there, so that it is not a soup's worst, and keeps its units.
    """
    checked, low, high = _checked(points), np.asarray(low, float), np.asarray(high, float)
    span = _span(low, high)
    off = checked - low
    off = np.where(np.abs(off) > ROUNDING * np.abs(low), off, 0.0)
    return np.where(span > 0, off / np.where(span > 0, span, 1.0), 1.0 + off)


def mean_inner_product(points_normalised: ArrayLike, weights: ArrayLike) -> float:
    """Mean over the soups of sum_j lambda_j r_j, with lambda [S, N] and r normalised [S, N].

    High where soups are good at what their weights ask for (the measure of PARM and UniARM, there
    on raw rewards).
    """
    return float((_checked(points_normalised) * np.asarray(weights, float)).sum(axis=1).mean())


def balanced(points_normalised: ArrayLike) -> int:
    """Index of the point whose smallest normalised value is largest; ties go to the larger mean,
    then to the first. Always a point of the front."""
    checked = _checked(points_normalised)
    return _first_best(checked.min(axis=1), checked.mean(axis=1))


def pick(points_normalised: ArrayLike, preference: ArrayLike) -> int:
    """Index of the point with the largest inner product with `preference` [N]; ties as `balanced`.

    The preference is any non-negative vector that is not all zero; only its direction matters.
    """
    checked, wanted = _checked(points_normalised), np.asarray(preference, float)
    if not (np.isfinite(wanted).all() and (wanted >= 0).all() and wanted.any()):
        raise ValueError(f"a preference is non-negative and not all zero, got {wanted.tolist()}")
    return _first_best(checked @ wanted, checked.mean(axis=1))


def _span(low: Array, high: Array) -> Array:
    """[N]: the range of each value, 0 where it is no more than rounding."""
    span = high - low
    return np.where(span > ROUNDING * np.maximum(np.abs(low), np.abs(high)), span, 0.0)


def _first_best(first: Array, second: Array) -> int:
    if not len(first):
        raise ValueError("there is no point to pick")
    return max(range(len(first)), key=lambda index: (first[index], second[index], -index))


def _checked(points: ArrayLike) -> Array:
    checked = np.asarray(points, dtype=np.float64)
    if checked.ndim != 2:
        raise ValueError(f"points must be [soups, values], got shape {checked.shape}")
    if not np.isfinite(checked).all():
        raise ValueError("points must be finite: NaN and infinity have no place on a front")
    return checked
