"""Fingerprints of checkpoints: what they are, without reading all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vcsoup_dist.checkpoints.digests import combined, digest
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.sources import Source
from vcsoup_dist.errors import UserError

SAMPLED_TENSORS = 64
SAMPLED_BYTES = 1024  # of each


class FileState(NamedTuple):
    """Tells a file from what was at its path before."""

    modified: int
    """Nanoseconds."""
    size: int
    inode: int
    touched: int
    """Nanoseconds, of the last change to its content, owner, mode or links."""


def state_of(path: Path) -> FileState:
    """UserError where the file is gone."""
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return FileState(found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns)


def require_unchanged(
    source: Source, states: Mapping[Path, FileState], fingerprint: list[Any]
) -> None:
    """UserError that names a file of the checkpoint that was written since.

    states: of its files, and fingerprint: `source_fingerprint`, as they were.
    """
    for path in files_of(source):
        then, now = states[path], state_of(path)
        if then == now:
            continue
        # Backups and `chmod` touch a file and leave its content.
        if then[:3] == now[:3] and source_fingerprint(source) == fingerprint:
            continue
        raise UserError(
            f"{path}: was changed while it was merged, and no soup of it is published; merge again"
            " when nothing writes to it any more (--overwrite starts over)"
        )


def source_fingerprint(source: Source) -> list[Any]:
    """Names and sizes of the files, and a digest of samples of the weights: JSON-able."""
    files = [[name_in(source, path), path.stat().st_size] for path in files_of(source)]
    return [files, _sampled(source)]


def files_of(source: Source) -> list[Path]:
    """The files that its tensors lie in."""
    return sorted({extent.file for spec in source.layout.values() for extent in spec.extents})


def name_in(source: Source, path: Path) -> str:
    """The file's name within the checkpoint, or with the folder's where it is of another one."""
    if path.is_relative_to(source.path):
        return path.relative_to(source.path).as_posix()
    return f"{path.parent.name}/{path.name}"


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
