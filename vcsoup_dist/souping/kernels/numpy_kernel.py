"""The weighted sum in numpy: what `kernel.c` does, for machines where that could not be built.

Sums run in float64 in the order of the policies and are rounded once to the output type, to
nearest, ties to even. Where the float64's own error could decide the rounding, the sum is done
again without error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.checkpoints.direct_io import Bytes
from vcsoup_dist.souping.kernels.exact import exact_sums
from vcsoup_dist.souping.kernels.formats import (
    FLOAT_DTYPES,
    Float64,
    decode,
    encode,
    has_nonfinite,
)

BLOCK = 1 << 16  # elements; smaller blocks pay more for calls than larger ones for the cache


@dataclass(frozen=True)
class _Block:
    """Working memory for M elements, made once: fresh pages would cost as much as the sums."""

    terms: Float64
    """[N, M]"""
    sizes: Float64
    """[M], sum of the terms' magnitudes"""
    total: Float64
    magnitude: Float64
    spare: Float64
    single: NDArray[np.float32]
    distance: NDArray[np.uint32]
    doubtful: NDArray[np.bool_]
    flags: NDArray[np.bool_]


def _new_block(policies: int, numel: int) -> _Block:
    sizes, total, magnitude, spare = np.empty((4, numel))
    doubtful, flags = np.empty((2, numel), bool)
    return _Block(
        terms=np.empty((policies, numel)),
        sizes=sizes,
        total=total,
        magnitude=magnitude,
        spare=spare,
        single=np.empty(numel, "<f4"),
        distance=np.empty(numel, "<u4"),
        doubtful=doubtful,
        flags=flags,
    )


def weighted_sum(
    chunks: Sequence[Bytes],
    dtypes: Sequence[str],
    weights: Float64,
    out_dtype: str,
    out: Sequence[Bytes],
) -> list[bool]:
    """As `souping.kernel.weighted_sum`, which has checked the arguments."""
    numel = chunks[0].nbytes // FLOAT_DTYPES[dtypes[0]]
    can_be_exact = "F64" not in (*dtypes, out_dtype)
    block = _new_block(len(chunks), min(BLOCK, numel))
    with np.errstate(all="ignore"):  # NaN and overflow are legal here; the caller looks for them
        for begin in range(0, numel, BLOCK):
            size = min(BLOCK, numel - begin)
            if size < block.total.size:
                block = _new_block(len(chunks), size)
            block.sizes.fill(0)
            for term, chunk, dtype in zip(block.terms, chunks, dtypes, strict=True):
                decode(_part(chunk, dtype, begin, size), dtype, term)
                block.sizes[:] += np.abs(term, out=block.spare)
            for row, result in zip(weights, out, strict=True):
                raw = _part(result, out_dtype, begin, size)
                used = [(i, weight) for i, weight in enumerate(row.tolist()) if weight]
                if [weight for _, weight in used] == [1.0] and dtypes[used[0][0]] == out_dtype:
                    raw[:] = _part(chunks[used[0][0]], out_dtype, begin, size)
                    continue
                terms = [(block.terms[i], weight) for i, weight in used]
                _plain_sum(terms, block)
                if can_be_exact and terms:
                    # N products and N - 1 sums, each off by 2^-53 of the terms at most; doubled.
                    off = len(chunks) * 2.0**-52 * float(np.abs(row).max())
                    _encode_exactly(terms, block, off, out_dtype, raw)
                else:
                    encode(block.total, out_dtype, raw)
    return [has_nonfinite(chunk, dtype) for chunk, dtype in zip(chunks, dtypes, strict=True)]


def _part(array: Bytes, dtype: str, begin: int, size: int) -> Bytes:
    width = FLOAT_DTYPES[dtype]
    return array[begin * width : (begin + size) * width]


def _plain_sum(used: Sequence[tuple[Float64, float]], block: _Block) -> None:
    """block.total = the sum of terms times weight, by plain IEEE operations: no FMA, no BLAS."""
    if not used:
        block.total.fill(0)
        return
    np.multiply(*used[0], out=block.total)  # not added to a zero, which would lose the sign of -0
    for term, weight in used[1:]:
        np.multiply(term, weight, out=block.spare)
        np.add(block.total, block.spare, out=block.total)


def _encode_exactly(
    used: Sequence[tuple[Float64, float]], block: _Block, off: float, dtype: str, raw: Bytes
) -> None:
    """Round the exact sum, from which block.total is off by `off * block.sizes` at most."""
    if dtype == "BF16":
        _encode_fast_bf16(block, off, raw)
    else:
        _encode_twice(block, off, dtype, raw)
    doubtful = np.flatnonzero(block.doubtful)
    if doubtful.size == 0:
        return
    values = block.total[doubtful]
    sums = exact_sums([term[doubtful] for term, _ in used], [weight for _, weight in used])
    # Infinity, NaN and the sign of zero: as summed.
    known = np.isfinite(values) & ((sums != 0) | (values != 0))
    values[known] = sums[known]
    decided = np.empty(doubtful.size * FLOAT_DTYPES[dtype], np.uint8)
    encode(values, dtype, decided)
    word = f"<u{FLOAT_DTYPES[dtype]}"
    raw.view(word)[doubtful] = decided.view(word)


def _encode_fast_bf16(block: _Block, off: float, raw: Bytes) -> None:
    """Round by way of float32; doubtful is where that may be wrong, as it is for ties and NaN.

    Where the error is below 2^-26 of the total, a quarter of a float32's last bit, only totals
    within one such bit of a tie are in doubt; elsewhere terms cancel, and all are.
    """
    block.single[:] = block.total
    bits = block.single.view("<u4")
    np.subtract(bits, 0x7FFF, out=block.distance)
    np.bitwise_and(block.distance, 0xFFFF, out=block.distance)
    np.less_equal(block.distance, 2, out=block.doubtful)
    np.multiply(block.sizes, off * 2.0**26, out=block.spare)
    np.abs(block.total, out=block.magnitude)
    np.greater_equal(block.magnitude, block.spare, out=block.flags)  # False for NaN
    np.logical_not(block.flags, out=block.flags)
    np.logical_or(block.doubtful, block.flags, out=block.doubtful)
    bits += 0x8000
    raw.view("<u2")[:] = bits.view("<u2")[1::2]


def _encode_twice(block: _Block, off: float, dtype: str, raw: Bytes) -> None:
    """Round both ends of where the sum may lie; doubtful is where they differ."""
    np.multiply(block.sizes, off, out=block.spare)
    other = np.empty_like(raw)
    encode(block.total - block.spare, dtype, raw)
    encode(block.total + block.spare, dtype, other)
    word = f"<u{FLOAT_DTYPES[dtype]}"
    np.not_equal(raw.view(word), other.view(word), out=block.doubtful)
    np.logical_not(np.isfinite(block.spare), out=block.flags)  # also by a policy of weight 0
    np.logical_or(block.doubtful, block.flags, out=block.doubtful)
