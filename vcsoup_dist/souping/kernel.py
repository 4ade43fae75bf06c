"""theta(lambda) = sum_i lambda_i theta_i on raw bytes, correctly rounded.

Sums run in float64 in the order of the policies and are rounded once to the output type, to
nearest, ties to even. Where the float64's own error could decide the rounding, the sum is done
again without error: each output is the exact sum of the float64 weights times the stored numbers,
correctly rounded, whatever the machine and the order of the policies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.souping.exact import Float64, exact_sums

Bytes = NDArray[np.uint8]

FLOAT_DTYPES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
"""Bytes per element of the dtypes that can be summed."""

BLOCK = 1 << 16  # elements; the float64 blocks of a few policies stay in the L2 cache

_NUMPY_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def weighted_sum(
    chunks: Sequence[Bytes],
    dtypes: Sequence[str],
    weights: Float64,
    out_dtype: str,
    out: Sequence[Bytes],
) -> None:
    """Fill out[k] with sum_i weights[k, i] * chunks[i], rounded once to `out_dtype`.

    chunks: N arrays of raw bytes, the same elements of N policies, stored as dtypes[i];
    weights: [K, N]; out: K arrays of raw bytes. A policy of weight 0 takes no part, and the soup
    of weights (1, 0) is policy 0 bit for bit. NaN stays NaN. Where F64 goes in or comes out, the
    sum is the plain float64 one.
    """
    numel = chunks[0].nbytes // FLOAT_DTYPES[dtypes[0]]
    counts = {array.nbytes / FLOAT_DTYPES[kind] for array, kind in zip(chunks, dtypes, strict=True)}
    counts |= {array.nbytes / FLOAT_DTYPES[out_dtype] for array in out}
    if weights.shape != (len(out), len(chunks)) or counts != {numel}:
        raise ValueError("weights must be [K, N], and all arrays hold the same number of elements")
    can_be_exact = "F64" not in (*dtypes, out_dtype)
    length = min(BLOCK, numel)
    terms = np.empty((len(chunks), length))
    with np.errstate(all="ignore"):  # NaN and overflow are legal here; the caller looks for them
        for begin in range(0, numel, BLOCK):
            block = terms[:, : min(BLOCK, numel - begin)]
            for term, chunk, dtype in zip(block, chunks, dtypes, strict=True):
                _decode(_part(chunk, dtype, begin, term.size), dtype, term)
            sizes = np.abs(block).sum(axis=0) if can_be_exact else None
            for row, result in zip(weights, out, strict=True):
                raw = _part(result, out_dtype, begin, block.shape[1])
                used = [(term, weight) for term, weight in zip(block, row, strict=True) if weight]
                total = _plain_sum(used, block.shape[1])
                if sizes is None or [weight for _, weight in used] == [1.0]:
                    _encode(total, out_dtype, raw)
                else:
                    # N products and N - 1 sums, each off by 2^-53 of the terms at most; doubled.
                    off = len(chunks) * 2.0**-52 * float(np.abs(row).max())
                    _encode_exactly(used, total, sizes, off, out_dtype, raw)


def has_nonfinite(chunk: Bytes, dtype: str) -> bool:
    """Whether raw bytes of a float dtype hold a NaN or an infinity."""
    if dtype != "BF16":
        values = chunk.view(_NUMPY_TYPES[dtype])
        return any(
            not np.isfinite(values[begin : begin + BLOCK]).all()
            for begin in range(0, values.size, BLOCK)
        )
    words = chunk.view("<u2")
    # Without the sign bit, infinity and all NaN are the words from 0x7F80 on.
    return any(
        int((words[begin : begin + BLOCK] & 0x7FFF).max()) >= 0x7F80
        for begin in range(0, words.size, BLOCK)
    )


def _part(array: Bytes, dtype: str, begin: int, size: int) -> Bytes:
    width = FLOAT_DTYPES[dtype]
    return array[begin * width : (begin + size) * width]


def _plain_sum(used: Sequence[tuple[Float64, float]], numel: int) -> Float64:
    """Sum of (terms [numel], weight), by plain IEEE products and sums: no fused ones, no BLAS."""
    if not used:
        return np.zeros(numel)
    total = np.multiply(*used[0])  # not added to a zero, which would lose the sign of -0
    product = np.empty_like(total)
    for term, weight in used[1:]:
        np.multiply(term, weight, out=product)
        np.add(total, product, out=total)
    return total


def _encode_exactly(
    used: Sequence[tuple[Float64, float]],
    total: Float64,
    sizes: Float64,
    off: float,
    dtype: str,
    raw: Bytes,
) -> None:
    """Round the exact sum, whose float64 value `total` is off by `off * sizes` at most."""
    fast = _encode_fast_bf16 if dtype == "BF16" else _encode_twice
    doubtful = np.flatnonzero(fast(total, sizes, off, dtype, raw))
    if doubtful.size == 0:
        return
    values = total[doubtful]
    sums = exact_sums([term[doubtful] for term, _ in used], [weight for _, weight in used])
    known = np.isfinite(values) & (sums != 0)  # infinity, NaN and the sign of zero: as summed
    values[known] = sums[known]
    decided = np.empty(doubtful.size * FLOAT_DTYPES[dtype], np.uint8)
    _encode(values, dtype, decided)
    word = f"<u{FLOAT_DTYPES[dtype]}"
    raw.view(word)[doubtful] = decided.view(word)


def _encode_fast_bf16(
    total: Float64, sizes: Float64, off: float, dtype: str, raw: Bytes
) -> NDArray[np.bool_]:
    """Round by way of float32; True where that may be wrong, as it is for ties and for NaN.

    Where the error is below 2^-26 of the total, a quarter of a float32's last bit, only totals
    within one such bit of a tie are in doubt; elsewhere terms cancel, and all are.
    """
    bits = total.astype("<f4").view("<u4")
    distance = bits - np.uint32(0x7FFF)
    distance &= 0xFFFF
    doubtful = distance <= 2
    doubtful |= ~(np.abs(total) >= sizes * (off * 2.0**26))
    bits += 0x8000
    raw.view("<u2")[:] = bits.view("<u2")[1::2]
    return doubtful


def _encode_twice(
    total: Float64, sizes: Float64, off: float, dtype: str, raw: Bytes
) -> NDArray[np.bool_]:
    """Round the lower and the upper end of where the sum may lie; True where they differ."""
    other = np.empty_like(raw)
    _encode(total - sizes * off, dtype, raw)
    _encode(total + sizes * off, dtype, other)
    word = f"<u{FLOAT_DTYPES[dtype]}"
    differs: NDArray[np.bool_] = raw.view(word) != other.view(word)
    return differs


def _decode(raw: Bytes, dtype: str, values: Float64) -> None:
    if dtype != "BF16":
        values[:] = raw.view(_NUMPY_TYPES[dtype])
        return
    # bf16 is the upper half of a float32.
    halves = np.zeros((values.size, 2), "<u2")
    halves[:, 1] = raw.view("<u2")
    values[:] = halves.reshape(-1).view("<f4")


def _encode(values: Float64, dtype: str, raw: Bytes) -> None:
    if dtype != "BF16":
        # numpy rounds float64 to float16 and float32 directly, to nearest even.
        raw.view(_NUMPY_TYPES[dtype])[:] = values
        return
    single = values.astype("<f4")
    bits = single.view("<u4")
    # Rounding twice goes wrong only where the first rounding made a tie of the second: there the
    # float64 decides, by one bit far below the last that is kept.
    ties = np.flatnonzero((bits & 0xFFFF) == 0x8000)
    if ties.size:
        exact, rounded = np.abs(values[ties]), np.abs(single[ties])
        bits[ties] += (exact > rounded).astype("<u4")
        bits[ties] -= (exact < rounded).astype("<u4")
    nan = np.isnan(single)
    keeps_nan = (bits >> 16) | 0x40 if nan.any() else None
    last = bits >> 16
    last &= 1
    bits += last
    bits += 0x7FFF
    bits >>= 16
    if keeps_nan is not None:  # adding to a NaN's bits may carry into the sign or give infinity
        bits[nan] = keeps_nan[nan]
    raw.view("<u2")[:] = bits
