"""Reward gaps of pairs, in units of each reward's spread, and their signs. P pairs, N values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Patterns = NDArray[np.uint32]

MOST_VALUES = 20  # the most whose signs in base 3 fit in 32 bits


def gap_vectors(chosen: Array, rejected: Array, scale: Array) -> Array:
    """g [P, N]: g_j = (r_j(x, y_w) - r_j(x, y_l)) / s_j, from rewards [P, N] and s [N] > 0.

    NaN where a reward is missing.
    """
    return (chosen - rejected) / scale


def turned_by(gaps: Array, own: int | None) -> tuple[Array, Mask]:
    """g [P, N] with the pairs turned round that value `own` prefers the other way; which [P].

    Without `own` none is, and without all its rewards no pair is.
    """
    if own is None:
        return gaps, np.zeros(len(gaps), dtype=bool)
    turned = (gaps[:, own] < 0) & ~np.isnan(gaps).any(axis=1)
    return np.where(turned[:, None], 0.0 - gaps, gaps), turned  # 0 - 0 is 0, and -(0) is -0


def sign_patterns(gaps: Array) -> Patterns:
    """Signs of gaps [P, N <= MOST_VALUES] in base 3, as in `PairColumns`; NaN counts as 0."""
    digits = (gaps > 0).astype(np.uint32) + (gaps >= 0) + np.isnan(gaps)
    patterns = np.zeros(len(gaps), dtype=np.uint32)
    for j in range(gaps.shape[1]):
        patterns = patterns * np.uint32(3) + digits[:, j].astype(np.uint32)
    return patterns


def count_patterns(patterns: Patterns) -> dict[int, int]:
    """How many pairs have each pattern."""
    found, counts = np.unique(patterns, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def named_patterns(counts: Mapping[int, int], values: int) -> dict[str, int]:
    """Counts by patterns such as `++-` (`0`: no preference), in the order of their names."""
    named = {
        "".join("-0+"[pattern // 3**j % 3] for j in reversed(range(values))): count
        for pattern, count in counts.items()
    }
    return dict(sorted(named.items()))
