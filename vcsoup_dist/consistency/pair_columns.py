"""The numbers that decide about pairs: all of a value's candidates in a few bytes each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class PairColumns:
    """P candidates of a value, in the order of their files; 22 bytes each."""

    ids: NDArray[np.uint64]
    """[P] the pairs' ids, 16 hex digits each, as numbers."""
    cosines: Array
    """c(g) [P]; NaN where g = 0 or a reward is missing."""
    patterns: NDArray[np.uint32]
    """[P] the signs of g in base 3, the first value's digit the highest: 0 is -, 1 is 0, 2 is +."""
    usable: Mask
    """[P] what no method leaves out: not twice there, no tie of its own reward, none missing."""
    eligible: Mask
    """[P] usable, g != 0, and the norm at least `consistency.min_norm`."""
