"""Proof: a soup against its sources, and a directory against its own manifest."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vcsoup_dist.checkpoints.auxiliary_files import auxiliary_files
from vcsoup_dist.checkpoints.digests import combined, digest
from vcsoup_dist.checkpoints.direct_io import PAGE, Bytes, page_buffer
from vcsoup_dist.checkpoints.json_file import read_json
from vcsoup_dist.checkpoints.layout import raw_header, read_layout
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.writer import Shard
from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import progress
from vcsoup_dist.souping.arguments import Folder, as_path
from vcsoup_dist.souping.chunks import Chunk, cut_chunks
from vcsoup_dist.souping.output.manifest import FORMAT, MANIFEST_NAME, shard_digest
from vcsoup_dist.souping.output.weights_files import chunk_bytes
from vcsoup_dist.souping.plan import MergePlan
from vcsoup_dist.souping.stream import Done, Recipients, stream


class Verified(NamedTuple):
    """What was found to be right."""

    tensors: int
    nbytes: int
    """Of weights that were read."""


def verify_soups(
    plan: MergePlan,
    folders: Sequence[Path],
    *,
    memory: int = 1 << 30,
    sample: float = 1.0,
    seed: int = 0,
) -> Verified:
    """Sum the policies again and compare with the finished soups in `folders`, byte by byte.

    sample: share of the chunks that are compared, drawn by `seed`. UserError where a soup differs.
    """
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
        # Each thread has one more buffer, for what lies there.
        buffers = len(plan.sources) + len(folders)
        room = memory * buffers // (buffers + 1)
        made = stream(plan.recipients(), chunks, sink, memory=room, allow_nonfinite=True)
        compared = sum(chunk_bytes(done.chunk) * len(folders) for done in _shown(made, chunks))
    return Verified(len({chunk.tensor for chunk in chunks}), compared)


def verify_directory(folder: Folder, *, memory: int = 1 << 30) -> Verified:
    """Compare the files of a soup with its `manifest.json`; UserError for one that differs."""
    folder = as_path(folder, "folder")
    manifest = _read_manifest(folder)
    files: dict[str, dict[str, Any]] = manifest["files"]
    layout = read_layout(folder)
    weights_files = sorted({spec.file.name for spec in layout.values()})
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: is missing; remove the soup and merge it again")
        if path.stat().st_size != entry["bytes"]:
            raise UserError(
                f"{path}: has {path.stat().st_size} bytes, was written with {entry['bytes']}"
            )
        if name not in weights_files and digest(path.read_bytes()).hex() != entry["digest"]:
            raise UserError(f"{path}: is not what was written")
    for name in [*weights_files, *auxiliary_files(folder)]:
        if name not in files:
            raise UserError(f"{folder / name}: is not in {MANIFEST_NAME}; it was added later")
    shards = [
        Shard(
            file, tuple((s.name, s.dtype, s.shape) for s in layout.values() if s.file.name == file)
        )
        for file in weights_files
    ]
    chunks = list(cut_chunks(shards))
    what = Recipients([layout], [folder.name], np.empty((0, 1)), 1)
    found: dict[int, bytes] = {}
    for done in _shown(stream(what, chunks, _Nowhere(), memory=memory), chunks):
        found[done.chunk.number] = done.inputs[0]
    of_chunks: dict[str, list[bytes]] = {name: [] for name in layout}
    for chunk in chunks:
        of_chunks[chunk.tensor].append(found[chunk.number])
    tensors = {name: combined(each) for name, each in of_chunks.items()}
    for name, each in tensors.items():
        if manifest["tensors"].get(name) != each.hex():
            raise UserError(
                f"{layout[name].file}: {name!r} is not what was written; remove the soup and merge"
                " it again"
            )
    for shard in shards:
        path = folder / shard.file_name
        if shard_digest(raw_header(path), shard, tensors).hex() != files[path.name]["digest"]:
            raise UserError(
                f"{path}: its header is not what was written; remove the soup and merge it again"
            )
    return Verified(len(layout), sum(map(chunk_bytes, chunks)))


class _Nowhere:
    """The sink of no soups."""

    def prepare(self, chunk: Chunk) -> None:
        pass

    def place(self, chunk: Chunk, offset: int) -> int:
        return offset

    def put(self, soup: int, chunk: Chunk, offset: int, data: Bytes) -> None:
        raise AssertionError("there are no soups")


class _Comparison(_Nowhere):
    """Compares what should be written with what lies there."""

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
                f" byte {first} of it on; remove the soup and merge it again"
            )


def _shown(finished: Iterator[Done], chunks: Sequence[Chunk]) -> Iterator[Done]:
    with progress("verify", sum(map(chunk_bytes, chunks)) / 1e9, "GB") as advance:
        for done in finished:
            advance(chunk_bytes(done.chunk) / 1e9)
            yield done


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise UserError(f"{path}: there is none; `vcsoup verify` checks what `vcsoup merge` wrote")
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path}: is of format {manifest.get('format')!r}, this version knows {FORMAT}"
        )
    entries = manifest.get("files")
    entries = entries if isinstance(entries, dict) else {"": None}
    known = all(isinstance(e, dict) and e.keys() >= {"bytes", "digest"} for e in entries.values())
    if not known or not isinstance(manifest.get("tensors"), dict):
        raise UserError(f"{path}: lacks `files` or `tensors`; it was damaged")
    for name in entries:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{path}: names {name!r}, which is no file of its directory")
    return manifest
