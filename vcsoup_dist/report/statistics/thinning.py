"""Equal numbers of candidates: a front of more candidates is a larger maximum."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def nearest(wanted: ArrayLike, weights: ArrayLike) -> list[int]:
    """For each of `wanted` [k, A] in turn, the nearest of `weights` [C, A] that is not yet taken.

    Indices into `weights`, the first of equally near ones. It depends on the weights alone, never
    on rewards, so nothing is chosen by its result. ValueError for fewer weights than wanted.
    """
    goal, own = np.asarray(wanted, np.float64), np.asarray(weights, np.float64)
    if len(own) < len(goal):
        raise ValueError(f"{len(own)} candidates cannot be thinned to {len(goal)}")
    # Grids and lists differ in the last bits; these are no reason to prefer one to another.
    far = np.round(((goal[:, None] - own[None]) ** 2).sum(axis=-1), 9)
    taken: list[int] = []
    for row in far:
        row[taken] = np.inf
        taken.append(int(row.argmin()))
    return taken
