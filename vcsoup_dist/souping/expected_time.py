"""How long a merge will take, from a part of it that is really done and removed again."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.checkpoints.direct_io import Bytes
from vcsoup_dist.checkpoints.writer import Shard, ShardFile
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.chunks import Chunk, cut_chunks
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.resources import existing_parent, raise_open_files
from vcsoup_dist.souping.stream import Sink, stream

SAMPLE = 1 << 28  # bytes that are read and written


def expected_seconds(run: MergeRun) -> float:
    """Of the whole merge."""
    plan = run.plan
    chunks: list[Chunk] = []
    moved = 0
    for chunk in cut_chunks(plan.shards):
        if moved > SAMPLE:
            break
        chunks.append(chunk)
        moved += sum(plan.bytes_of(chunk))
    if not moved:
        return 0.0
    raise_open_files(plan, chunks)
    place = existing_parent(run.out.parent)
    if not os.access(place, os.W_OK):
        raise UserError(f"{place}: cannot be written; choose another --out")
    with tempfile.TemporaryDirectory(dir=place, prefix=".vcsoup-sample-") as folder:
        sink = _SampleFiles(Path(folder), chunks, len(plan.soups))
        began = time.monotonic()
        memory = run.options.memory
        for _ in stream(plan.sums(), chunks, sink, memory=memory, allow_nonfinite=True):
            pass
        sink.close()
        seconds = time.monotonic() - began
    return seconds * (plan.bytes_read + plan.soup_bytes * len(plan.soups)) / moved


class _SampleFiles(Sink):
    """One file a soup, with the sampled chunks one after the other."""

    def __init__(self, folder: Path, chunks: Sequence[Chunk], soups: int) -> None:
        shard = Shard(
            "sample.safetensors",
            tuple((str(each.number), each.dtype, (each.end - each.begin,)) for each in chunks),
        )
        self._files = []
        for soup in range(soups):
            (folder / str(soup)).mkdir()
            self._files.append(ShardFile.create(folder / str(soup), shard))

    def place(self, chunk: Chunk, offset: int) -> int:
        return self._files[0].start_of(str(chunk.number)) + self._within(chunk, offset)

    def put(self, soup: int, chunk: Chunk, offset: int, data: Bytes) -> None:
        self._files[soup].write(str(chunk.number), self._within(chunk, offset), data)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _within(self, chunk: Chunk, offset: int) -> int:
        return offset - chunk.begin * (chunk.nbytes // (chunk.end - chunk.begin))
