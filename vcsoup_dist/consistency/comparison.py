"""Who conflicts with whom, and what each policy would keep of the same pairs.

To choose a policy before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.candidates import PairColumns
from vcsoup_dist.consistency.filtering import Policy, keep
from vcsoup_dist.consistency.policies import SAME, all_positive
from vcsoup_dist.recipe import Consistency

Array = NDArray[np.float64]
Bits = NDArray[np.uint8]

THRESHOLDS = (0.0, 0.5)
RATIOS = (0.5, 0.25)


@dataclass(frozen=True)
class _Row:
    """A row of the comparison."""

    name: str
    """As a reader should see it."""
    policy: Policy
    recipe: bool = False
    """Whether the recipe says so."""


def conflict_matrix(sign_patterns: Mapping[str, int]) -> Array:
    """Share of pairs [N, N] in which values i and j prefer different answers; symmetric.

    `sign_patterns`: pairs by pattern of N signs, such as `++-`; a gap of `0` prefers neither
    answer and contradicts nobody. Of no pairs: [0, 0].
    """
    if not sign_patterns:
        return np.zeros((0, 0))
    counts = np.array(list(sign_patterns.values()), dtype=np.float64)
    signs = np.array([list(pattern) for pattern in sign_patterns])
    positive, negative = (signs == "+").astype(np.float64), (signs == "-").astype(np.float64)
    one_way = (positive * counts[:, None]).T @ negative  # whole numbers: exact in any order
    matrix: Array = (one_way + one_way.T) / counts.sum()
    return matrix


def safe_threshold(values: int) -> float:
    """sqrt((N-1)/N): from this cosine on no gap of N values is negative."""
    return math.sqrt((values - 1) / values)


def lossless_threshold(values: int) -> float:
    """1/sqrt(N): the cosine of every gap vector without a part <= 0 lies above it."""
    return math.sqrt(1 / values)


def compare(columns: PairColumns, settings: Consistency | None, values: int) -> dict[str, Any]:
    """What policies keep of P pairs with N values, JSON-able.

    `usable`, `eligible`: pairs; `policies`: a table with `name`, `policy` (`none` or one of the
    recipe), its `threshold` and `ratio`, `recipe` (whether that says so), `count` (pairs kept),
    `share` (of the usable) and `all_positive` (share of the kept whose gaps are all positive);
    `overlap`: for policies A and B in that order |A and B| / |A|. Shares of no pairs are
    None. `random` keeps as many pairs as the policy of `settings`; without them there are neither.
    """
    positive = np.packbits(all_positive(columns.patterns, columns.usable, values))
    usable, eligible = int(columns.usable.sum()), int(columns.eligible.sum())
    masks: list[Bits] = []
    rows: list[dict[str, Any]] = []
    own_count = 0
    for row in _rows(settings, values):
        policy = row.policy
        if policy.kind == "random" and policy.ratio is None:
            policy = replace(policy, count=own_count)
        mask = keep(policy, columns, values)
        bits = np.packbits(mask)
        count = int(mask.sum())
        if row.recipe:
            own_count = count
        masks.append(bits)
        rows.append(
            {
                "name": row.name,
                "policy": policy.kind,
                "threshold": policy.threshold,
                "ratio": policy.ratio,
                "recipe": row.recipe,
                "count": count,
                "share": _ratio(count, usable),
                "all_positive": _ratio(_common(bits, positive), count),
            }
        )
    overlap = [
        [_ratio(_common(one, other), row["count"]) for other in masks]
        for one, row in zip(masks, rows, strict=True)
    ]
    return {"usable": usable, "eligible": eligible, "policies": rows, "overlap": overlap}


def _rows(settings: Consistency | None, values: int) -> Iterator[_Row]:
    """Random last: it copies the size of the recipe's."""
    own = settings.rule if settings else None
    threshold_of_own = settings.threshold if settings and own == "threshold" else None
    ratio_of_own = settings.ratio if settings and own in ("ratio", "random") else None
    yield _Row("no filter", Policy("none"))
    thresholds = [*THRESHOLDS, lossless_threshold(values), safe_threshold(values)]
    if threshold_of_own is not None:
        thresholds.insert(0, threshold_of_own)
    for threshold in sorted(_distinct(thresholds)):
        is_own = threshold == threshold_of_own
        yield _Row(f"c >= {threshold:.4g}", Policy("threshold", threshold), is_own)
    ratios = set(RATIOS)
    if own == "ratio" and ratio_of_own is not None:
        ratios.add(ratio_of_own)
    for ratio in sorted(ratios, reverse=True):
        is_own = own == "ratio" and ratio == ratio_of_own
        yield _Row(f"best {100 * ratio:.4g} %", Policy("ratio", ratio=ratio), is_own)
    yield _Row("all gaps > 0", Policy("all_positive"), own == "all_positive")
    if own == "random" and ratio_of_own is not None:
        policy = Policy("random", ratio=ratio_of_own)
        yield _Row(f"random {100 * ratio_of_own:.4g} %", policy, True)
    elif own is not None:
        yield _Row("random", Policy("random"))


def _distinct(thresholds: list[float]) -> list[float]:
    """Each once: of those that only rounding tells apart, the first."""
    kept: list[float] = []
    for threshold in thresholds:
        if all(abs(threshold - other) > SAME for other in kept):
            kept.append(threshold)
    return kept


def _common(one: Bits, other: Bits) -> int:
    """Pairs in both of two masks, eight to a byte."""
    return int(np.bitwise_count(one & other).sum(dtype=np.int64))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
