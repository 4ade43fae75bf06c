"""Proof: a soup against its sources, and a directory against its own manifest."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vcsoup_dist.checkpoints.auxiliary_files import auxiliary_files
from vcsoup_dist.checkpoints.digests import combined, digest
from vcsoup_dist.checkpoints.direct_io import PAGE, Bytes, page_buffer
from vcsoup_dist.checkpoints.layout import Layout, raw_header, read_layout
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.writer import Shard
from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import progress
from vcsoup_dist.records.soup_manifest import MANIFEST_NAME, SoupManifest, read_manifest
from vcsoup_dist.souping.arguments import Folder, as_path
from vcsoup_dist.souping.chunks import Chunk, cut_chunks
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.output.manifest import shard_digest
from vcsoup_dist.souping.stream import FinishedChunk, Sink, WeightedSums, stream

AGAIN = "remove the soup and merge it again"


class Verified(NamedTuple):
    """What was found to be right."""

    tensors: int
    nbytes: int
    """Of weights that were read."""


def verify_soups(run: MergeRun, *, sample: float = 1.0, seed: int = 0) -> Verified:
    """Sum the policies again and compare with the finished soups, byte by byte.

    sample: share of the chunks that are compared, drawn by `seed`. UserError where a soup differs.
    """
    plan, folders = run.plan, list(run.targets.values())
    layouts = [read_layout(folder) for folder in folders]
    for shard in plan.shards:
        for name, dtype, shape in shard.tensors:
            for layout, folder in zip(layouts, folders, strict=True):
                spec = layout.get(name)
                if spec is None or (spec.dtype, spec.shape) != (dtype, shape):
                    raise UserError(f"{folder}: {name!r} is missing, or of another dtype or shape")
    chunks = list(cut_chunks(plan.shards))
    if sample < 1 and chunks:
        chunks = random.Random(seed).sample(chunks, max(1, round(sample * len(chunks))))
        chunks.sort()
    with ExitStack() as stack:
        readers = [stack.enter_context(CheckpointReader(layout)) for layout in layouts]
        sink = _Comparison(readers, folders)
        # Each thread has one more buffer, for what the soup holds.
        buffers = len(plan.sources) + len(folders)
        memory = run.options.memory * buffers // (buffers + 1)
        summed = stream(plan.sums(), chunks, sink, memory=memory, allow_nonfinite=True)
        compared = sum(done.chunk.nbytes * len(folders) for done in _shown(summed, chunks))
    return Verified(len({chunk.tensor for chunk in chunks}), compared)


def verify_directory(folder: Folder, *, memory: int = 1 << 30) -> Verified:
    """Compare the files of a soup with its `manifest.json`; UserError for one that differs."""
    folder = as_path(folder, "folder")
    manifest = read_manifest(folder)
    layout = read_layout(folder)
    shards = [
        Shard(
            file, tuple((s.name, s.dtype, s.shape) for s in layout.values() if s.file.name == file)
        )
        for file in sorted({spec.file.name for spec in layout.values()})
    ]
    _verify_files(folder, manifest, {shard.file_name for shard in shards})
    tensors = _tensor_digests(folder, layout, shards, memory)
    for name, each in tensors.items():
        if manifest.tensors.get(name) != each.hex():
            raise UserError(f"{layout[name].file}: {name!r} is not what was written; {AGAIN}")
    for shard in shards:
        path = folder / shard.file_name
        if shard_digest(raw_header(path), shard, tensors).hex() != manifest.files[path.name].digest:
            raise UserError(f"{path}: its header is not what was written; {AGAIN}")
    return Verified(len(layout), sum(chunk.nbytes for chunk in cut_chunks(shards)))


def _verify_files(folder: Path, manifest: SoupManifest, weights: set[str]) -> None:
    """Sizes of all files, and contents of all but the weights."""
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: is missing; {AGAIN}")
        if path.stat().st_size != entry.nbytes:
            raise UserError(
                f"{path}: has {path.stat().st_size} bytes, was written with {entry.nbytes}"
            )
        if name not in weights and digest(path.read_bytes()).hex() != entry.digest:
            raise UserError(f"{path}: is not what was written")
    for name in [*sorted(weights), *auxiliary_files(folder)]:
        if name not in manifest.files:
            raise UserError(f"{folder / name}: is not in {MANIFEST_NAME}; it was added later")


def _tensor_digests(
    folder: Path, layout: Layout, shards: Sequence[Shard], memory: int
) -> dict[str, bytes]:
    chunks = list(cut_chunks(shards))
    no_sums = WeightedSums([layout], [folder.name], np.empty((0, 1)), 1)
    read = _shown(stream(no_sums, chunks, Sink(), memory=memory), chunks)
    found = {done.chunk.number: done.inputs[0] for done in read}
    of_chunks: dict[str, list[bytes]] = {name: [] for name in layout}
    for chunk in chunks:
        of_chunks[chunk.tensor].append(found[chunk.number])
    return {name: combined(each) for name, each in of_chunks.items()}


class _Comparison(Sink):
    """Compares what should be written with what the soup holds."""

    def __init__(self, readers: Sequence[CheckpointReader], folders: Sequence[Path]) -> None:
        self._readers = readers
        self._folders = folders
        self._memory = threading.local()

    def put(self, soup: int, chunk: Chunk, offset: int, data: Bytes) -> None:
        buffer: Bytes | None = getattr(self._memory, "buffer", None)
        if buffer is None or buffer.nbytes < data.nbytes + 2 * PAGE:
            self._memory.buffer = buffer = page_buffer(data.nbytes + 2 * PAGE)
        there = self._readers[soup].read(chunk.tensor, offset, data.nbytes, buffer)
        if not np.array_equal(there, data):
            first = offset + int(np.flatnonzero(there != data)[0])
            raise UserError(
                f"{self._folders[soup]}: {chunk.tensor!r} differs from the sum of its sources, from"
                f" byte {first} of it on; {AGAIN}"
            )


def _shown(finished: Iterator[FinishedChunk], chunks: Sequence[Chunk]) -> Iterator[FinishedChunk]:
    with progress("verify", sum(chunk.nbytes for chunk in chunks) / 1e9, "GB") as advance:
        for done in finished:
            advance(done.chunk.nbytes / 1e9)
            yield done
