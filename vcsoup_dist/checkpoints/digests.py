"""Fingerprints of weights that can be computed in any order and by several processes.

A tensor is cut into chunks of `CHUNK` elements. Its digest is the xxh3-128 of the digests of its
chunks' bytes, a file's that of its header's and its tensors' digests, a checkpoint's that of the
names, dtypes, shapes and digests of its tensors: the same however it is cut into files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import xxhash

from vcsoup_dist.checkpoints.layout import TensorSpec

CHUNK = 1 << 22
"""Elements; 8 MiB in bf16. Part of the definition of every digest."""


def digest(data: bytes) -> bytes:
    """xxh3-128, 16 bytes."""
    return xxhash.xxh3_128_digest(data)


def combined(digests: Iterable[bytes]) -> bytes:
    """The digest of a whole from those of its parts, in order."""
    return xxhash.xxh3_128_digest(b"".join(digests))


def weights_digest(specs: Sequence[TensorSpec], tensors: Mapping[str, bytes]) -> bytes:
    """Of a checkpoint, from the digests of its tensors by name."""
    lines = sorted(
        json.dumps([spec.name, spec.dtype, list(spec.shape), tensors[spec.name].hex()])
        for spec in specs
    )
    return digest("\n".join(lines).encode())
