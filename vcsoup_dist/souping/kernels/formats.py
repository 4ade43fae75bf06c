"""Raw bytes of the float formats of checkpoints, to float64 and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.checkpoints.direct_io import Bytes
from vcsoup_dist.errors import UserError

Float64 = NDArray[np.float64]

FLOAT_DTYPES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
"""Bytes per element of the dtypes that can be summed."""

NAMES = {
    "bfloat16": "BF16", "bf16": "BF16", "float16": "F16", "fp16": "F16",
    "float32": "F32", "fp32": "F32", "float64": "F64", "fp64": "F64",
}  # fmt: skip
"""What people write -> safetensors' own."""

_NUMPY_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_QUIET_NAN = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000}
_BLOCK = 1 << 15  # elements


def format_named(name: str, where: str) -> str:
    """safetensors' name of a dtype; UserError that begins with `where` for an unknown one."""
    if name not in NAMES:
        raise UserError(f"{where} {name!r} is not known; known are bf16, fp16, fp32, fp64")
    return NAMES[name]


def decode(raw: Bytes, dtype: str, values: Float64) -> None:
    """Fill `values` with the numbers in `raw`, exactly."""
    if dtype != "BF16":
        values[:] = raw.view(_NUMPY_TYPES[dtype])
        return
    # bf16 is the upper half of a float32.
    halves = np.zeros((values.size, 2), "<u2")
    halves[:, 1] = raw.view("<u2")
    values[:] = halves.reshape(-1).view("<f4")


def encode(values: Float64, dtype: str, raw: Bytes) -> None:
    """Fill `raw` with `values`, rounded once, to nearest, ties to even.

    NaN becomes the format's one quiet NaN: its other bits depend on the machine.
    """
    nan = np.isnan(values)
    if dtype == "BF16":
        _encode_bf16(values, raw)
    else:
        # numpy rounds float64 to float16 and float32 directly, to nearest even.
        raw.view(_NUMPY_TYPES[dtype])[:] = values
    if nan.any() and dtype != "F64":
        raw.view(f"<u{FLOAT_DTYPES[dtype]}")[nan] = _QUIET_NAN[dtype]


def _encode_bf16(values: Float64, raw: Bytes) -> None:
    single = values.astype("<f4")
    bits = single.view("<u4")
    # Rounding twice goes wrong only where the first rounding made a tie of the second: there the
    # float64 decides, by one bit far below the last that is kept.
    ties = np.flatnonzero((bits & 0xFFFF) == 0x8000)
    if ties.size:
        exact, rounded = np.abs(values[ties]), np.abs(single[ties])
        bits[ties] += (exact > rounded).astype("<u4")
        bits[ties] -= (exact < rounded).astype("<u4")
    bits += (bits >> 16 & 1) + np.uint32(0x7FFF)
    bits >>= 16
    raw.view("<u2")[:] = bits


def has_nonfinite(chunk: Bytes, dtype: str) -> bool:
    """Whether raw bytes of a float dtype hold a NaN or an infinity."""
    if dtype != "BF16":
        values = chunk.view(_NUMPY_TYPES[dtype])
        return any(
            not np.isfinite(values[begin : begin + _BLOCK]).all()
            for begin in range(0, values.size, _BLOCK)
        )
    words = chunk.view("<u2")
    # Without the sign bit, infinity and all NaN are the words from 0x7F80 on.
    return any(
        int((words[begin : begin + _BLOCK] & 0x7FFF).max()) >= 0x7F80
        for begin in range(0, words.size, _BLOCK)
    )
