"""One scale for all of a run's hypervolumes, which only the candidates that span it can move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from vcsoup_dist.records.summary import Scale
from vcsoup_dist.report.statistics import fronts
from vcsoup_dist.report.statistics.evaluated import Evaluated, Shared


def choose_scale(evaluated: Sequence[Evaluated], shared: Shared) -> Scale:
    """From theta_0 and the single-value policies of the first method that has all of them.

    Their means, of every seed, span each value: the least becomes 0, the largest 1. Where no method
    has all policies among its evaluated candidates, all candidates of the first method take their
    place; then one more of that method can move the scale.
    """
    methods = list(dict.fromkeys(one.method for one in evaluated if one.method is not None))
    method = next((each for each in methods if _has_all(evaluated, each, shared.axes)), None)
    chosen = [one for one in evaluated if one.method is None]
    if method is not None:
        chosen += [one for one in evaluated if one.method == method and one.policy is not None]
    elif methods:
        chosen += [one for one in evaluated if one.method == methods[0]]
    means = np.array([[one.mean(value) for value in shared.values] for one in chosen])
    low, high = fronts.bounds(means)
    reference = fronts.reference_point(means)
    return Scale(
        low=_by_value(shared, low),
        high=_by_value(shared, high),
        reference=_by_value(shared, reference),
        reference_scaled=_by_value(shared, fronts.normalise([reference], low, high)[0]),
        method=method or next(iter(methods), None),
        policies_only=method is not None,
    )


def _by_value(shared: Shared, numbers: ArrayLike) -> dict[str, float]:
    return dict(zip(shared.values, np.asarray(numbers, float).tolist(), strict=True))


def _has_all(evaluated: Sequence[Evaluated], method: str, axes: Sequence[str]) -> bool:
    return {one.policy for one in evaluated if one.method == method} >= set(axes)
