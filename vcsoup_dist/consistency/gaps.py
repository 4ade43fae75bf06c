"""Reward gaps of pairs, in units of each reward's spread: direction, length and signs.

P pairs, N values. The order of the values changes no bit of a pair's consistency or norm.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Patterns = NDArray[np.uint32]


ROUNDING = 1e-6
"""A difference below this share of both a reward's spread and the rewards themselves is rounding: a
few units in the last place of fp32."""
ROUNDING_OF_SPREAD = 1e-12
"""So is one below this share of the spread alone, as a sum leaves it that should be 0."""


def gap_vectors(chosen: Array, rejected: Array, scale: Array, spread: Array) -> Array:
    """g [P, N]: g_j = (r_j(x, y_w) - r_j(x, y_l)) / s_j, from rewards [P, N] and s [N] > 0.

    Exactly 0 where the difference is rounding; `spread` [N] is each reward's standard deviation.
    NaN where a reward is missing.
    """
    difference = chosen - rejected
    size = np.maximum(np.abs(chosen), np.abs(rejected))
    least = np.maximum(ROUNDING * np.minimum(size, spread), ROUNDING_OF_SPREAD * spread)
    gaps: Array = np.where(np.abs(difference) <= least, 0.0, difference) / scale
    return gaps


def swap_by_own(gaps: Array, own: int | None) -> tuple[Array, Mask]:
    """g [P, N] with the answers exchanged where value `own` prefers the rejected one; where [P].

    Without `own` no pair is swapped, nor is one that lacks a reward.
    """
    if own is None:
        return gaps, np.zeros(len(gaps), dtype=bool)
    swapped = (gaps[:, own] < 0) & ~np.isnan(gaps).any(axis=1)
    return np.where(swapped[:, None], 0.0 - gaps, gaps), swapped  # 0 - 0 is 0, and -(0) is -0


def consistency(gaps: Array) -> Array:
    """c(g) = cos(g, 1) = sum_j g_j / (sqrt(N) ||g||_2), in [-1, 1], for gap vectors [P, N].

    NaN where g = 0, which has no direction. Of whole numbers its square is rounded once, so that
    equal cosines are equal here too, and that of (1, 0) is sqrt(1/2).
    """
    parts, _ = _scaled(gaps)
    total, squares = _sum(parts), _sum(np.square(parts)) * gaps.shape[1]
    squared = np.full_like(total, np.nan)
    np.divide(np.square(total), squares, out=squared, where=squares > 0)
    cosine: Array = np.copysign(np.sqrt(np.minimum(squared, 1.0)), total)
    return cosine


def norm(gaps: Array) -> Array:
    """||g||_2 [P]: how strongly the rewards speak, which the cosine does not see."""
    parts, exponents = _scaled(gaps)
    length: Array = np.ldexp(np.sqrt(_sum(np.square(parts))), exponents)
    return length


def _scaled(gaps: Array) -> tuple[Array, NDArray[np.int32]]:
    """Each vector's parts [P, N] in ascending order, over 2**e, and e [P].

    The largest part ends up between 1/2 and 1, so that nothing over- or underflows when squared; a
    power of two takes no bit away, so sums of whole numbers stay exact.
    """
    parts = np.sort(gaps, axis=1)
    _, exponents = np.frexp(np.abs(gaps).max(axis=1))
    return np.ldexp(parts, -exponents[:, None]), exponents


def _sum(parts: Array) -> Array:
    """Sums [P] over the columns, one after the other whatever the layout in memory."""
    total = np.zeros(len(parts))
    for j in range(parts.shape[1]):
        total += parts[:, j]
    return total


def sign_patterns(gaps: Array) -> Patterns:
    """Signs of gaps [P, N] in base 3, as in `PairColumns`; NaN counts as 0.

    N is at most the recipe's `MOST_VALUES`.
    """
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
