"""Value consistency: the cosine between a gap vector and the all-ones vector."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def consistency(gaps: Array) -> Array:
    """c(g) = cos(g, 1) = sum_j g_j / (sqrt(N) ||g||_2), in [-1, 1], for gap vectors [P, N].

    NaN where g = 0, which has no direction.
    """
    largest = np.abs(gaps).max(axis=1, keepdims=True)
    # Direction alone matters: by its largest part no vector over- or underflows when squared.
    direction = np.divide(gaps, largest, out=np.full_like(gaps, np.nan), where=largest > 0)
    length = np.sqrt(np.square(direction).sum(axis=1) * gaps.shape[1])
    cosine: Array = np.clip(direction.sum(axis=1) / length, -1.0, 1.0)
    return cosine


def norm(gaps: Array) -> Array:
    """||g||_2 [P]: how strongly the rewards speak, which the cosine does not see."""
    length: Array = np.linalg.norm(gaps, axis=1)
    return length
