"""Cheap signs of what a checkpoint is, without reading all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vcsoup_dist.checkpoints.digests import combined, digest
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.sources import Source

SAMPLED_TENSORS = 64
SAMPLED_BYTES = 1024  # of each


def source_mark(source: Source) -> list[Any]:
    """Names and sizes of the files, and a digest of samples of the weights: JSON-able."""
    files = [[name_in(source, path), path.stat().st_size] for path in files_of(source)]
    return [files, _sampled(source)]


def files_of(source: Source) -> list[Path]:
    """The files that its tensors lie in."""
    return sorted({extent.file for spec in source.layout.values() for extent in spec.extents})


def name_in(source: Source, path: Path) -> str:
    """The file's name within the checkpoint."""
    return path.relative_to(source.path).as_posix()


def _sampled(source: Source) -> str:
    specs = list(source.layout.values())
    buffer = np.empty(SAMPLED_BYTES, np.uint8)
    samples = []
    with CheckpointReader(source.layout) as reader:
        for spec in specs[:: max(1, len(specs) // SAMPLED_TENSORS)]:
            count = min(SAMPLED_BYTES, spec.nbytes)
            reader.read_into(spec.name, (spec.nbytes - count) // 2, buffer[:count])
            samples.append(digest(buffer[:count].tobytes()))
    return combined(samples).hex()
