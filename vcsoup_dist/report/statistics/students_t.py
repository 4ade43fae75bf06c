"""Quantiles of Student's t with any degrees of freedom, whole or not."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)
MANY = 100.0  # degrees of freedom, from which a series about the normal quantile is exact enough
EXACT = 1e-12  # of an angle; Newton's steps end there
STEPS = 100


def t_quantile(probability: float, freedom: ArrayLike) -> Array:
    """The number that Student's t stays below with `probability`, for each `freedom`.

    The probability is 0.5 or more, the degrees of freedom 1 or more, whole or not.
    Exact to 6 digits up to 0.999. ValueError outside these ranges.
    """
    f = np.asarray(freedom, dtype=np.float64)
    found = [_quantile(probability, round(each, 6)) for each in f.ravel().tolist()]
    return np.array(found, dtype=np.float64).reshape(f.shape)


def tail(quantile: float) -> float:
    """How often a normal number is larger than `quantile`."""
    return math.erfc(quantile / math.sqrt(2)) / 2


@functools.lru_cache(maxsize=4096)
def _quantile(probability: float, f: float) -> float:
    if not 0.5 <= probability < 1 or not f >= 1:
        raise ValueError(f"no quantile {probability} of Student's t with {f} degrees of freedom")
    z = NormalDist().inv_cdf(probability)
    return _series(z, f) if f > MANY else _by_newton(probability - 0.5, z, f)


def _series(z: float, f: float) -> float:
    """Abramowitz and Stegun, 26.7.5."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / f + second / f**2 + third / f**3


def _by_newton(above_0: float, z: float, f: float) -> float:
    """t = sqrt(f) tan(angle), whose density is C cos(angle)^(f - 1).

    The integral from 0 is concave, so steps from below, where the normal quantile lies, stay below.
    """
    c = math.exp(math.lgamma((f + 1) / 2) - math.lgamma(f / 2)) / math.sqrt(math.pi)
    angle = math.atan(z / math.sqrt(f))
    for _ in range(STEPS):
        inside = np.cos(angle / 2 * (NODES + 1)) ** (f - 1) @ WEIGHTS
        missing = above_0 - c * angle / 2 * float(inside)
        step = missing / (c * math.cos(angle) ** (f - 1))
        angle += step
        if step < EXACT:
            break
    return math.sqrt(f) * math.tan(angle)
