"""Sums lambda_i theta_i without any rounding error, for the few elements that hang on it.

Weights such as 0.3 and 0.7 put every tenth element or so on a tie between two bf16 numbers but for
the last bits of a float64, and opposite terms may cancel down to those bits. There a float64 sum
rounds by its own error (0.5 to 4 % of all elements differ from the exact sum, measured).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vcsoup_dist.souping.kernels.formats import Float64

UPPER_BITS = np.int64(-1 << 27)  # of a float64: leaves 26 of its 53 significant bits


def exact_sums(terms: Sequence[Float64], weights: Sequence[float]) -> Float64:
    """sum_i weights[i] * terms[i] as float64 rounded to odd.

    terms: N arrays [M], of at most 24 significant bits (bf16, fp16, fp32); weights: N numbers.
    Rounded to odd means: cut off, and the last bit set if anything was cut. Rounding that once
    more, to any format of at most 51 bits, gives the exact sum correctly rounded (Boldo and
    Melquiond 2008).
    """
    whole = np.array(weights, dtype=np.float64)
    upper = (whole.view(np.int64) & UPPER_BITS).view(np.float64)
    parts: list[Float64] = []  # exact sum so far, without overlap, small to large (Shewchuk 1997)
    for term, high, low in zip(terms, upper, whole - upper, strict=True):
        for half in (high, low) if low else (high,):  # 0.5 or 0.75 have no lower half
            total = term * half  # 24 + 27 bits: exact
            for i, part in enumerate(parts):
                total, parts[i] = _two_sum(total, part)
            parts.append(total)
    head = parts.pop()
    cut = np.zeros_like(head)
    while parts:
        total, rest = _two_sum(head, parts.pop())
        # Once something was cut, smaller parts cannot change its sign.
        head = np.where(cut == 0, total, head)
        cut = np.where(cut == 0, rest, cut)
    bits = head.view(np.int64)
    towards_zero = np.signbit(head) != np.signbit(cut)
    to_odd = np.where(towards_zero, -1, 1) * ((cut != 0) & (bits & 1 == 0))
    rounded: Float64 = (bits + to_odd).view(np.float64)
    return rounded


def _two_sum(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    """fl(a + b) and its error, exactly (Knuth)."""
    total = a + b
    from_b = total - a
    return total, (a - (total - from_b)) + (b - from_b)
