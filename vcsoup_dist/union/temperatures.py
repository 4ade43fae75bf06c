"""Temperatures a_j: what turns a reward's differences into logits of its value's preferences.

sigmoid(a_j (r_j(y_w) - r_j(y_l))) is to be the probability with which value j prefers y_w
(Bradley-Terry), so that rewards of different scales can be summed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.records.union import Temperature

Array = NDArray[np.float64]

LARGEST_LOGIT = 3.0
"""Of the median pair: a reward that never errs has no largest likelihood."""
HALVINGS = 80


def fit_temperature(gaps: Array) -> Temperature:
    """a > 0 of the largest sum of log sigmoid(a gap) over a value's held-out pairs.

    gaps [P]: reward of the chosen answer minus that of the rejected; ties tell nothing. The
    likelihood is concave in a, so a is where its slope is 0, at most that which makes the median
    |a gap| `LARGEST_LOGIT`. None where the reward is no better than chance: the best a is not > 0.
    """
    told = gaps[gaps != 0]
    agree = float(np.mean((np.sign(gaps) + 1) / 2)) if len(gaps) else None
    if not len(told) or not told.sum() > 0:
        return Temperature(None, len(gaps), agree)
    most = LARGEST_LOGIT / float(np.median(np.abs(told)))
    if _slope(told, most) >= 0:
        return Temperature(most, len(gaps), agree, capped=True)
    low, high = 0.0, most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(told, middle) > 0 else (low, middle)
    return Temperature((low + high) / 2, len(gaps), agree)


def _slope(gaps: Array, a: float) -> float:
    """Of the mean log-likelihood: the mean of gap sigmoid(-a gap)."""
    with np.errstate(over="ignore"):  # then the share is 0, as it should be
        return float(np.mean(gaps / (1 + np.exp(a * gaps))))


def shared_temperature(
    fitted: Mapping[str, Temperature], std: Mapping[str, float], value: str
) -> Temperature:
    """a = kappa / s of a value that its own reward labels, whose agreement says nothing.

    kappa: the geometric mean of the other values' a_k s_k; s: standard deviations by value. None
    where no other value has a temperature.
    """
    logits = [each.a * std[name] for name, each in fitted.items() if each.a is not None]
    if not logits:
        return Temperature(None, 0, None)
    kappa = math.exp(math.fsum(map(math.log, logits)) / len(logits))
    return Temperature(kappa / std[value], 0, None)
