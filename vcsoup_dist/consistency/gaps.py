"""Reward gaps of pairs, in units of each reward's spread. P pairs, N values."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Normalisation = Literal["zscore", "gap_std", "robust", "none"]

NORMAL_MAD = 1.4826  # standard deviation of a normal over its median absolute deviation


def reward_scale(chosen: Array, rejected: Array, normalisation: Normalisation) -> Array:
    """s_j [N]: the spread of each reward, from the rewards [P, N] of chosen and rejected.

    `zscore`: standard deviation of both pooled; `gap_std`: of the gaps; `robust`: median absolute
    deviation of both pooled, scaled to a normal's standard deviation; `none`: 1. Deviations have
    ddof = 0. A mean would cancel in a gap, so none is taken off.
    """
    pooled = np.concatenate([chosen, rejected])
    scale: Array = np.ones(chosen.shape[1])
    if normalisation == "zscore":
        scale = pooled.std(axis=0)
    elif normalisation == "gap_std":
        scale = (chosen - rejected).std(axis=0)
    elif normalisation == "robust":
        scale = NORMAL_MAD * np.median(np.abs(pooled - np.median(pooled, axis=0)), axis=0)
    return scale


def gap_vectors(chosen: Array, rejected: Array, scale: Array) -> Array:
    """g [P, N]: g_j = (r_j(x, y_w) - r_j(x, y_l)) / s_j, from rewards [P, N] and s [N] > 0."""
    return (chosen - rejected) / scale


def sign_patterns(gaps: Array) -> dict[str, int]:
    """How many of the gap vectors [P, N] have each pattern of signs, such as `++-` (`0`: none)."""
    signs = np.sign(gaps).astype(int)
    patterns, counts = np.unique(signs, axis=0, return_counts=True)
    counted: Counter[str] = Counter()
    for pattern, count in zip(patterns, counts, strict=True):
        counted["".join("-0+"[sign + 1] for sign in pattern)] += int(count)
    return dict(sorted(counted.items()))
