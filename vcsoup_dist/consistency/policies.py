"""Which pairs to keep: masks [P] over pairs, decided by their content and not by their order.

Every policy chooses among candidates [P], a mask too: what is not usable, has no direction or is
shorter than `min_norm` is left out before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Ids = NDArray[np.uint64]

SAME = 1e-12
"""Cosines and thresholds that differ by less are one: rounding alone tells them apart."""


def by_threshold(cosines: Array, candidates: Mask, threshold: float) -> Mask:
    """c >= threshold, up to `SAME`: a sum of gaps of exactly 0 passes 0."""
    return candidates & (cosines >= threshold - SAME)  # NaN is not


def best_share(cosines: Array, ids: Ids, candidates: Mask, ratio: float) -> Mask:
    """The `ratio` of the candidates with the largest c; equal ones in the order of their ids."""
    return lowest(-cosines, ids, candidates, share(int(candidates.sum()), ratio))


def all_positive(patterns: NDArray[np.uint32], candidates: Mask, values: int) -> Mask:
    """Every reward prefers the chosen answer (Reward Consistency's rule).

    patterns: signs in base 3 as in `PairColumns`, of `values` gaps each.
    """
    positive: Mask = patterns == 3**values - 1
    return candidates & positive


def random_subset(ids: Ids, candidates: Mask, count: int) -> Mask:
    """`count` of the candidates at random; the same pairs always give the same subset."""
    return lowest(_lots(ids), ids, candidates, count)


def share(candidates: int, ratio: float) -> int:
    """`ratio` of a number of candidates, rounded to the nearest (half up); at least one of them."""
    return min(candidates, max(1, int(ratio * candidates + 0.5)))


def lowest(keys: NDArray, ids: Ids, candidates: Mask, count: int) -> Mask:
    """The `count` candidates with the lowest keys [P]; equal keys in the order of the ids [P]."""
    among = np.flatnonzero(candidates)
    if count >= len(among):
        return candidates.copy()
    mask = np.zeros(len(ids), dtype=bool)
    if count > 0:
        found = keys[among]
        cut = np.partition(found, count - 1)[count - 1]
        mask[among[found < cut]] = True
        ties = among[found == cut]
        wanted = count - int(mask.sum())
        mask[ties[np.argsort(ids[ties], kind="stable")[:wanted]]] = True
    return mask


def _lots(ids: Ids) -> Ids:
    """Another number for each id, one to one: the finaliser of SplitMix64.

    Not the id itself, by which ties of the cosine are broken.
    """
    mixed = ids + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    lots: Ids = mixed ^ (mixed >> np.uint64(31))
    return lots
