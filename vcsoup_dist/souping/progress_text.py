"""What a person reads before and after a merge: one screen of plain text."""

from __future__ import annotations

import math
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.checkpoints.auxiliary_files import find_auxiliary_files
from vcsoup_dist.checkpoints.direct_io import Bytes
from vcsoup_dist.checkpoints.writer import Shard, ShardFile
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.chunks import Chunk, cut_chunks
from vcsoup_dist.souping.kernels.kernel import implementation
from vcsoup_dist.souping.output.targets import Placement
from vcsoup_dist.souping.output.weights_files import chunk_bytes
from vcsoup_dist.souping.output.write import Written, open_files
from vcsoup_dist.souping.plan import MergePlan, free_bytes, raise_open_files
from vcsoup_dist.souping.stream import stream

SAMPLE = 1 << 28  # bytes that are read and written for the expected time
MOST_SOUPS = 8  # that are listed by name
MOST_LEFT = 8  # the same of files that are not copied


def describe(plan: MergePlan, where: Placement, *, memory: int) -> list[str]:
    """The lines of the preflight."""
    metas = [meta for shard in plan.shards for meta in shard.tensors]
    parameters = sum(math.prod(shape) for _, _, shape in metas)
    dtypes = Counter[str]()
    for _, dtype, shape in metas:
        dtypes[dtype] += math.prod(shape)
    written = plan.soup_bytes * len(plan.soups)
    lines = [
        f"policies  {len(plan.sources)}: "
        + ", ".join(
            f"{name} ({source.kind})" for name, source in zip(plan.names, plan.sources, strict=True)
        ),
        f"tensors   {len(metas):,}, {parameters:,} numbers,"
        f" written as {', '.join(dtype for dtype, _ in dtypes.most_common())}",
        f"read      {plan.bytes_read / 1e9:.2f} GB, each byte once",
        f"write     {written / 1e9:.2f} GB: {len(plan.soups)} x {plan.soup_bytes / 1e9:.2f} GB in"
        f" {len(plan.shards)} files, to {where.out}",
        f"disk      {free_bytes(where.out) / 1e9:.2f} GB free",
        f"memory    at most {memory / 2**30:.2f} GiB; kernel: {implementation()}",
        "config    "
        + (
            f"and tokenizer of {plan.companions.name}"
            if plan.companions
            else "none: no policy has a config.json, soups will be weights only"
        ),
    ]
    left = find_auxiliary_files(plan.companions).left if plan.companions else []
    if left:
        more = f" and {len(left) - MOST_LEFT} more" if len(left) > MOST_LEFT else ""
        lines.append(f"left      of its files: {', '.join(left[:MOST_LEFT])}{more}")
    formula = "sum" if plan.base is None else f"difference from {plan.base}"
    for soup, row in list(plan.soups.items())[:MOST_SOUPS]:
        lines.append(f"soup      {soup} ({formula}): {', '.join(map(repr, row))}")
    if len(plan.soups) > MOST_SOUPS:
        lines.append(f"soup      and {len(plan.soups) - MOST_SOUPS} more")
    return lines


def expected_seconds(plan: MergePlan, where: Placement, *, memory: int) -> float:
    """Of the whole merge, from a part of it that is really done, into files that are removed."""
    chunks: list[Chunk] = []
    moved = 0
    for chunk in cut_chunks(plan.shards):
        if moved > SAMPLE:
            break
        chunks.append(chunk)
        moved += _moved(plan, chunk)
    total = plan.bytes_read + plan.soup_bytes * len(plan.soups)
    if not moved:
        return 0.0
    raise_open_files(open_files(plan, chunks))
    place = where.out.parent
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise UserError(f"{place}: cannot be written; choose another --out")
    with tempfile.TemporaryDirectory(dir=place, prefix=".vcsoup-sample-") as folder:
        sink = _SampleFiles(Path(folder), chunks, len(plan.soups))
        began = time.monotonic()
        for _ in stream(plan.recipients(), chunks, sink, memory=memory, allow_nonfinite=True):
            pass
        sink.close()
        seconds = time.monotonic() - began
    return seconds * total / moved


def last_line(report: Written, seconds: float) -> str:
    """Bytes, seconds, GB/s, peak memory."""
    moved = report.bytes_read + report.bytes_written
    kept = f"; {report.chunks_kept} chunks were done before" if report.chunks_kept else ""
    return (
        f"{report.bytes_read / 1e9:.3f} GB read, {report.bytes_written / 1e9:.3f} GB written in"
        f" {seconds:.1f} s, {moved / 1e9 / max(seconds, 1e-9):.2f} GB/s, peak memory"
        f" {_peak_memory() / 2**20:.0f} MiB{kept}"
    )


def not_done(ranks: Sequence[int], world_size: int) -> str:
    """The ranks whose part is missing, as far as their number was given."""
    if world_size == 1:
        return "not done yet; give the --world-size of the ranks to see which are missing"
    return f"not done yet: ranks {', '.join(map(str, ranks))} of {world_size}"


def _peak_memory() -> int:
    """Bytes of this process."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose getrusage begins with what the parent held
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _moved(plan: MergePlan, chunk: Chunk) -> int:
    read = sum(
        source.layout[chunk.tensor].nbytes
        * (chunk.end - chunk.begin)
        // max(1, math.prod(source.layout[chunk.tensor].shape))
        for source in plan.sources
    )
    return read + chunk_bytes(chunk) * len(plan.soups)


class _SampleFiles:
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

    def prepare(self, chunk: Chunk) -> None:
        pass

    def place(self, chunk: Chunk, offset: int) -> int:
        return self._files[0].start_of(str(chunk.number)) + self._within(chunk, offset)

    def put(self, soup: int, chunk: Chunk, offset: int, data: Bytes) -> None:
        self._files[soup].write(str(chunk.number), self._within(chunk, offset), data)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _within(self, chunk: Chunk, offset: int) -> int:
        return offset - chunk.begin * (chunk_bytes(chunk) // (chunk.end - chunk.begin))
