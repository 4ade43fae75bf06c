"""Which pairs a rule keeps: masks [P], decided by the pairs' content and not by their order.

All rules but `all` choose from the eligible pairs [P], a mask too: pairs that are not usable, have
no direction or are shorter than `min_norm` are left out before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.measured_pairs import PairColumns
from vcsoup_dist.records.keep_rule import KeepRule

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Ids = NDArray[np.uint64]

SAME = 1e-12
"""Cosines and thresholds that differ by less are one: rounding alone tells them apart."""


def keep(rule: KeepRule, columns: PairColumns, values: int, size: int | None = None) -> Mask:
    """The pairs [P] of N values that a rule keeps; `size`: of the set that `as_many_as` copies."""
    eligible = columns.eligible
    match rule:
        case KeepRule("all"):
            return columns.usable
        case KeepRule("all_positive"):
            return all_positive(columns.patterns, eligible, values)
        case KeepRule("threshold", threshold=threshold) if threshold is not None:
            return by_threshold(columns.cosines, eligible, threshold)
        case KeepRule("ratio", ratio=ratio) if ratio is not None:
            return best_share(columns.cosines, columns.ids, eligible, ratio)
        case KeepRule("random", ratio=ratio) if ratio is not None:
            return random_subset(columns.ids, eligible, share(int(eligible.sum()), ratio))
        case KeepRule("as_many_as") if size is not None:
            return random_subset(columns.ids, eligible, size)
    raise ValueError(f"{rule} lacks its threshold, ratio or size")


def by_threshold(cosines: Array, eligible: Mask, threshold: float) -> Mask:
    """c >= threshold, up to `SAME`: a sum of gaps of exactly 0 passes 0."""
    return eligible & (cosines >= threshold - SAME)  # NaN is not


def best_share(cosines: Array, ids: Ids, eligible: Mask, ratio: float) -> Mask:
    """The `ratio` of the eligible pairs with the largest c; equal ones in the order of ids."""
    return lowest(-cosines, ids, eligible, share(int(eligible.sum()), ratio))


def all_positive(patterns: NDArray[np.uint32], eligible: Mask, values: int) -> Mask:
    """Every reward prefers the chosen answer (Reward Consistency's rule).

    patterns: signs in base 3 as in `PairColumns`, of `values` gaps each.
    """
    positive: Mask = patterns == 3**values - 1
    return eligible & positive


def random_subset(ids: Ids, eligible: Mask, count: int) -> Mask:
    """`count` of the eligible pairs at random; the same pairs always give the same subset."""
    return lowest(_random_order(ids), ids, eligible, count)


def share(eligible: int, ratio: float) -> int:
    """`ratio` of a number of pairs, rounded to the nearest (half up); at least one of them."""
    return min(eligible, max(1, int(ratio * eligible + 0.5)))


def lowest(keys: NDArray, ids: Ids, eligible: Mask, count: int) -> Mask:
    """The `count` eligible pairs with the lowest keys [P]; equal keys in the order of ids [P]."""
    among = np.flatnonzero(eligible)
    if count >= len(among):
        return eligible.copy()
    mask = np.zeros(len(ids), dtype=bool)
    if count > 0:
        found = keys[among]
        cut = np.partition(found, count - 1)[count - 1]
        mask[among[found < cut]] = True
        ties = among[found == cut]
        wanted = count - int(mask.sum())
        mask[ties[np.argsort(ids[ties], kind="stable")[:wanted]]] = True
    return mask


def _random_order(ids: Ids) -> Ids:
    """Another number for each id, one to one: the finaliser of SplitMix64.

    Not the id itself, by which ties of the cosine are broken.
    """
    mixed = ids + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    order: Ids = mixed ^ (mixed >> np.uint64(31))
    return order
