"""theta(lambda) = sum_i lambda_i theta_i on raw bytes, correctly rounded.

Each output is the exact sum of the float64 weights times the stored numbers, rounded once to the
output type, to nearest, ties to even: the same bytes on every machine and by both
implementations, the compiled one (`kernel.c`) and the numpy one for machines without a compiler.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

import numpy as np

from vcsoup_dist.checkpoints.direct_io import Bytes
from vcsoup_dist.souping.kernels import numpy_kernel
from vcsoup_dist.souping.kernels.formats import FLOAT_DTYPES, Float64

_FORMATS = {"BF16": 0, "F16": 1, "F32": 2, "F64": 3}  # enum format of kernel.c


def weighted_sum(
    chunks: Sequence[Bytes],
    dtypes: Sequence[str],
    weights: Float64,
    out_dtype: str,
    out: Sequence[Bytes],
) -> list[bool]:
    """Fill out[k] with sum_i weights[k, i] * chunks[i], rounded once to `out_dtype`.

    chunks: N arrays of raw bytes, the same elements of N policies, stored as dtypes[i];
    weights: [K, N]; out: K arrays of raw bytes. A policy of weight 0 takes no part, and the soup
    of weights (1, 0) is policy 0 bit for bit. Returns which chunks hold NaN or infinity; they are
    summed as IEEE says. Where F64 goes in or comes out, the sum is the plain float64 one, in the
    order of the policies.
    """
    numel = chunks[0].nbytes // FLOAT_DTYPES[dtypes[0]]
    counts = {array.nbytes / FLOAT_DTYPES[kind] for array, kind in zip(chunks, dtypes, strict=True)}
    counts |= {array.nbytes / FLOAT_DTYPES[out_dtype] for array in out}
    if weights.shape != (len(out), len(chunks)) or counts != {numel}:
        raise ValueError("weights must be [K, N], and all arrays hold the same number of elements")
    compiled = _compiled()
    if compiled is None:
        return numpy_kernel.weighted_sum(chunks, dtypes, weights, out_dtype, out)
    rows = np.ascontiguousarray(weights, np.float64)
    nonfinite = (ctypes.c_uint8 * len(chunks))()
    failed = compiled(
        numel,
        len(chunks),
        _pointers(chunks),
        (ctypes.c_int * len(chunks))(*(_FORMATS[dtype] for dtype in dtypes)),
        len(out),
        rows.ctypes.data,
        _FORMATS[out_dtype],
        _pointers(out),
        nonfinite,
    )
    if failed:
        raise MemoryError("no memory for the blocks of a weighted sum")
    return [bool(flag) for flag in nonfinite]


def implementation() -> str:
    """Which kernel this machine runs: "compiled" or "numpy"."""
    return "numpy" if _compiled() is None else "compiled"


@cache
def _compiled() -> Callable[..., int] | None:
    """The function of kernel.c, where the installation could build it; releases the GIL."""
    spec = importlib.util.find_spec("vcsoup_dist.souping.kernels._kernel")
    if spec is None or spec.origin is None:
        return None
    function = ctypes.CDLL(spec.origin).vcsoup_weighted_sum
    function.argtypes = (
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
    )
    function.restype = ctypes.c_int
    return cast("Callable[..., int]", function)


def _pointers(arrays: Sequence[Bytes]) -> ctypes.Array[ctypes.c_void_p]:
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError("the kernel takes contiguous arrays only")
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
