"""Which values contradict each other, from the signs of the pairs' gaps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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
