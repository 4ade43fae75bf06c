"""Which pairs to keep: masks [P] over pairs, decided by their content and not by their order.

Every policy chooses among the eligible pairs: those with a direction and a norm of at least
`min_norm`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def eligible(cosines: Array, norms: Array, min_norm: float) -> Mask:
    """Pairs whose gap vector is not zero and at least `min_norm` long."""
    return ~np.isnan(cosines) & (norms >= min_norm)


def by_threshold(cosines: Array, candidates: Mask, threshold: float) -> Mask:
    """c >= threshold."""
    return candidates & (np.nan_to_num(cosines, nan=-2.0) >= threshold)


def best_share(cosines: Array, ids: Sequence[str], candidates: Mask, ratio: float) -> Mask:
    """The `ratio` of the candidates with the largest c; equal ones in the order of their ids."""
    order = sorted(np.flatnonzero(candidates).tolist(), key=lambda i: (-cosines[i], ids[i]))
    return _mask(len(ids), order[: share(len(order), ratio)])


def all_positive(gaps: Array, candidates: Mask) -> Mask:
    """Every reward prefers the chosen answer (Reward Consistency's rule)."""
    return candidates & (gaps > 0).all(axis=1)


def random_subset(ids: Sequence[str], candidates: Mask, count: int) -> Mask:
    """`count` of the candidates at random; the same pairs always give the same subset."""
    order = sorted(np.flatnonzero(candidates).tolist(), key=lambda i: (_lot(ids[i]), ids[i]))
    return _mask(len(ids), order[:count])


def share(candidates: int, ratio: float) -> int:
    """`ratio` of a number of candidates, rounded to the nearest (half up); at least one of them."""
    return min(candidates, max(1, int(ratio * candidates + 0.5)))


def _lot(identity: str) -> int:
    # Not the id itself, by which ties of the cosine are broken.
    return xxhash.xxh3_64_intdigest(f"random/{identity}".encode())


def _mask(size: int, kept: Sequence[int]) -> Mask:
    mask = np.zeros(size, dtype=bool)
    mask[list(kept)] = True
    return mask
