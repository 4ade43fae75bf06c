"""The hypervolumes of many sets of points at once."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def hypervolumes(points: ArrayLike, reference: ArrayLike) -> Array:
    """[...]: the volume between `reference` [N] and each set of `points` [..., C, N], maximised.

    Exact, in the product of the values' units. Where there are one or two values, all sets are
    computed together; else one after another. A set without points has no volume.
    """
    above = np.maximum(np.asarray(points, np.float64) - np.asarray(reference, np.float64), 0.0)
    if above.shape[-2] == 0:
        return np.zeros(above.shape[:-2])
    match above.shape[-1]:
        case 1:
            return np.asarray(above[..., 0].max(axis=-1))
        case 2:
            return _areas(above[..., 0], above[..., 1])
    sets = above.reshape(-1, *above.shape[-2:])
    corner = np.zeros(sets.shape[-1])
    volumes = [float(moocore.hypervolume(each, ref=corner, maximise=True)) for each in sets]
    return np.array(volumes).reshape(above.shape[:-2])


def _areas(x: Array, y: Array) -> Array:
    """[...]: of the points x, y [..., C], none negative: strips from the largest x to the least."""
    order = np.argsort(-x, axis=-1)
    x, y = np.take_along_axis(x, order, -1), np.take_along_axis(y, order, -1)
    height = np.maximum.accumulate(y, axis=-1)
    return np.asarray((x * np.diff(height, axis=-1, prepend=0.0)).sum(axis=-1))
