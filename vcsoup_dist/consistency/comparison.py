"""What each policy would keep of the same pairs, to choose one before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.pair_columns import PairColumns
from vcsoup_dist.consistency.policies import (
    all_positive,
    best_share,
    by_threshold,
    random_subset,
    share,
)
from vcsoup_dist.recipe import Consistency

Mask = NDArray[np.bool_]
Bits = NDArray[np.uint8]

THRESHOLDS = (0.0, 0.5)
RATIOS = (0.5, 0.25)
SAME = 1e-12  # thresholds that differ by less are one


@dataclass(frozen=True)
class _Policy:
    """A row of the comparison."""

    name: str
    """As a reader should see it."""
    policy: str
    """`none` or a policy of the recipe."""
    threshold: float | None = None
    ratio: float | None = None
    recipe: bool = False
    """Whether the recipe says so."""


def safe_threshold(values: int) -> float:
    """sqrt((N-1)/N): from this cosine on no gap of N values is negative."""
    return math.sqrt((values - 1) / values)


def lossless_threshold(values: int) -> float:
    """1/sqrt(N): the cosine of every gap vector without a part <= 0 lies above it."""
    return math.sqrt(1 / values)


def compare(columns: PairColumns, settings: Consistency | None, values: int) -> dict[str, Any]:
    """What policies keep of P pairs with N values, JSON-able.

    `usable`, `eligible`: pairs; `policies`: a table with, besides the fields of a policy, `count`
    (pairs kept), `share` (of the usable) and `all_positive` (share of the kept whose gaps are all
    positive); `overlap`: for policies A and B in that order |A and B| / |A|. Shares of no pairs are
    None. `random` keeps as many pairs as the policy of `settings`; without them there are neither.
    """
    positive = np.packbits(all_positive(columns.patterns, columns.usable, values))
    usable, eligible = int(columns.usable.sum()), int(columns.eligible.sum())
    masks: list[Bits] = []
    rows = []
    own_count = 0
    for policy in _policies(settings, values):
        mask = _mask(policy, columns, values, own_count, eligible)
        bits = np.packbits(mask)
        count = int(mask.sum())
        if policy.recipe:
            own_count = count
        masks.append(bits)
        rows.append(
            asdict(policy)
            | {
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


def _policies(settings: Consistency | None, values: int) -> Iterator[_Policy]:
    """Random last: it copies the size of the recipe's."""
    own = settings.policy if settings else None
    threshold_of_own = settings.threshold if settings and own == "threshold" else None
    ratio_of_own = settings.ratio if settings and own in ("ratio", "random") else None
    yield _Policy("no filter", "none")
    thresholds = [*THRESHOLDS, lossless_threshold(values), safe_threshold(values)]
    if threshold_of_own is not None:
        thresholds.insert(0, threshold_of_own)
    for threshold in sorted(_distinct(thresholds)):
        is_own = threshold == threshold_of_own
        yield _Policy(f"c >= {threshold:.4g}", "threshold", threshold=threshold, recipe=is_own)
    ratios = set(RATIOS)
    if own == "ratio" and ratio_of_own is not None:
        ratios.add(ratio_of_own)
    for ratio in sorted(ratios, reverse=True):
        is_own = own == "ratio" and ratio == ratio_of_own
        yield _Policy(f"best {100 * ratio:.4g} %", "ratio", ratio=ratio, recipe=is_own)
    yield _Policy("all gaps > 0", "all_positive", recipe=own == "all_positive")
    if own == "random" and ratio_of_own is not None:
        yield _Policy(f"random {100 * ratio_of_own:.4g} %", "random", None, ratio_of_own, True)
    elif own is not None:
        yield _Policy("random", "random")


def _distinct(thresholds: list[float]) -> list[float]:
    """Each once: of those that only rounding tells apart, the first."""
    kept: list[float] = []
    for threshold in thresholds:
        if all(abs(threshold - other) > SAME for other in kept):
            kept.append(threshold)
    return kept


def _mask(
    policy: _Policy, columns: PairColumns, values: int, own_count: int, eligible: int
) -> Mask:
    if policy.policy == "none":
        return columns.usable
    if policy.threshold is not None:
        return by_threshold(columns.cosines, columns.eligible, policy.threshold)
    if policy.policy == "all_positive":
        return all_positive(columns.patterns, columns.eligible, values)
    if policy.policy == "random":
        count = own_count if policy.ratio is None else share(eligible, policy.ratio)
        return random_subset(columns.ids, columns.eligible, count)
    assert policy.ratio is not None
    return best_share(columns.cosines, columns.ids, columns.eligible, policy.ratio)


def _common(one: Bits, other: Bits) -> int:
    """Pairs in both of two masks, eight to a byte."""
    return int(np.bitwise_count(one & other).sum(dtype=np.int64))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
