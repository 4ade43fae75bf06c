"""One pass over the policies: chunks are read, summed and handed on, by several threads.

A thread reads its chunk of every policy, sums it for all soups, and hands the results on, so that
reading, arithmetic and writing of different chunks overlap. Memory is one set of buffers a thread.
"""

from __future__ import annotations

import os
import queue
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from vcsoup_dist.checkpoints.digests import CHUNK
from vcsoup_dist.checkpoints.direct_io import PAGE, Bytes, page_buffer, whole_pages
from vcsoup_dist.checkpoints.layout import DTYPE_BITS, Layout
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.chunks import Chunk
from vcsoup_dist.souping.kernels.formats import FLOAT_DTYPES, Float64
from vcsoup_dist.souping.kernels.kernel import weighted_sum

MOST_THREADS = 24
SMALLEST_BLOCK = 1 << 12  # elements
RESERVE = 1 << 26  # bytes of `memory` for threads, kernels and journals


class Sink(Protocol):
    """Where the chunks of the soups go."""

    def prepare(self, chunk: Chunk) -> None:
        """Called before the chunk is begun, in order, by one thread."""

    def place(self, chunk: Chunk, offset: int) -> int:
        """Where byte `offset` of the chunk's tensor lies in its file; memory is laid out alike."""

    def put(self, soup: int, chunk: Chunk, offset: int, data: Bytes) -> None:
        """A part of a chunk, from byte `offset` of its tensor; called by any thread."""


@dataclass(frozen=True)
class Recipients:
    """What is summed from what."""

    layouts: Sequence[Layout]
    """[N]; all hold the chunks' tensors in the same shapes."""
    names: Sequence[str]
    """[N], for messages."""
    weights: Float64
    """[K, N]"""
    out_width: int
    """Bytes of the widest element of the soups."""


class Done(NamedTuple):
    """A finished chunk: the digests of its bytes."""

    chunk: Chunk
    inputs: tuple[bytes, ...]
    """[N]"""
    outputs: tuple[bytes, ...]
    """[K]"""
    nonfinite: tuple[int, ...]
    """Which policies hold NaN or infinity there."""


def stream(
    what: Recipients,
    chunks: Iterable[Chunk],
    sink: Sink,
    *,
    memory: int,
    allow_nonfinite: bool = False,
) -> Generator[Done]:
    """Make all chunks; they come back in the order in which they are finished.

    memory: bytes, of all buffers and what the process holds already. Closing the generator
    finishes the chunks that were begun. UserError for NaN or infinity
    in a policy unless `allow_nonfinite`, for integers that differ between policies, for whatever
    reader and sink raise; other chunks that were begun are finished first.
    """
    threads, block = _threads_and_block(what, memory)
    with ExitStack() as stack:
        readers = [stack.enter_context(CheckpointReader(layout)) for layout in what.layouts]
        buffers: queue.SimpleQueue[_Buffers] = queue.SimpleQueue()
        for _ in range(threads):
            buffers.put(_Buffers.new(what, block))
        pool = ThreadPoolExecutor(threads)
        stack.callback(pool.shutdown, cancel_futures=True)

        def make(chunk: Chunk) -> Done:
            held = buffers.get()
            try:
                return _sum_chunk(what, readers, held, block, chunk, sink, allow_nonfinite)
            finally:
                buffers.put(held)

        yield from _in_turn(pool, make, chunks, sink.prepare, 2 * threads)


def _in_turn(
    pool: ThreadPoolExecutor,
    make: Callable[[Chunk], Done],
    chunks: Iterable[Chunk],
    prepare: Callable[[Chunk], None],
    most: int,
) -> Iterator[Done]:
    begun: set[Future[Done]] = set()
    try:
        for chunk in chunks:
            prepare(chunk)
            begun.add(pool.submit(make, chunk))
            if len(begun) >= most:
                yield from _finished(begun)
        while begun:
            yield from _finished(begun)
    except Exception:  # what the others have done is not lost
        for each in begun:
            each.cancel()
        for each in as_completed(begun):
            if not each.cancelled() and each.exception() is None:
                yield each.result()
        raise


def _finished(begun: set[Future[Done]]) -> Iterator[Done]:
    """Wait for one at least, and take out of `begun` what is finished; raises after the good."""
    finished, _ = wait(begun, return_when=FIRST_COMPLETED)
    begun -= finished
    failed = [each for each in finished if each.exception() is not None]
    yield from (each.result() for each in finished if each not in failed)
    for each in failed:
        each.result()


@dataclass(frozen=True)
class _Buffers:
    inputs: Sequence[Bytes]
    outputs: Sequence[Bytes]

    @classmethod
    def new(cls, what: Recipients, block: int) -> _Buffers:
        """Room for `block` elements of the widest dtype, wherever they begin in a page."""
        return cls(
            [page_buffer(block * widest(layout) + 2 * PAGE) for layout in what.layouts],
            [page_buffer(block * what.out_width + PAGE) for _ in what.weights],
        )


def _sum_chunk(
    what: Recipients,
    readers: Sequence[CheckpointReader],
    buffers: _Buffers,
    block: int,
    chunk: Chunk,
    sink: Sink,
    allow_nonfinite: bool,
) -> Done:
    dtypes = [layout[chunk.tensor].dtype for layout in what.layouts]
    widths = [DTYPE_BITS[dtype] // 8 for dtype in dtypes]
    out_width = DTYPE_BITS[chunk.dtype] // 8
    of_inputs = [xxhash.xxh3_128() for _ in readers]
    of_outputs = [xxhash.xxh3_128() for _ in buffers.outputs]
    nonfinite: set[int] = set()
    for begin in range(chunk.begin, chunk.end, block):
        count = min(block, chunk.end - begin)
        inputs = [
            reader.read(chunk.tensor, begin * width, count * width, buffer)
            for reader, width, buffer in zip(readers, widths, buffers.inputs, strict=True)
        ]
        for hasher, data in zip(of_inputs, inputs, strict=True):
            hasher.update(data.data)
        if not of_outputs:
            continue
        offset = begin * out_width
        shift = sink.place(chunk, offset) % PAGE
        outputs = [buffer[shift : shift + count * out_width] for buffer in buffers.outputs]
        if chunk.dtype in FLOAT_DTYPES:
            flags = weighted_sum(inputs, dtypes, what.weights, chunk.dtype, outputs)
            bad = [i for i, flag in enumerate(flags) if flag]
            if bad and is_equal_buffer(chunk.tensor, inputs, dtypes):
                weighted_sum(
                    inputs[:1], dtypes[:1], np.ones((len(outputs), 1)), chunk.dtype, outputs
                )
                bad = []
            nonfinite.update(bad)
            if nonfinite and not allow_nonfinite:
                raise UserError(
                    f"policy {what.names[min(nonfinite)]}: {chunk.tensor!r} holds NaN or infinity;"
                    " its training has failed, take an earlier checkpoint"
                )
        else:
            _copy_equal(inputs, outputs, chunk.tensor, what.names)
        for soup, (hasher, data) in enumerate(zip(of_outputs, outputs, strict=True)):
            hasher.update(data.data)
            sink.put(soup, chunk, offset, data)
    return Done(
        chunk,
        tuple(each.digest() for each in of_inputs),
        tuple(each.digest() for each in of_outputs),
        tuple(sorted(nonfinite)),
    )


def is_equal_buffer(tensor: str, inputs: Sequence[Bytes], dtypes: Sequence[str]) -> bool:
    """Whether it is no weight, such as a mask of -inf, and the same bits in all policies."""
    is_weight = tensor.endswith(("weight", "bias", "_proj", "scale"))
    return not is_weight and all(
        dtype == dtypes[0] and np.array_equal(data, inputs[0])
        for data, dtype in zip(inputs, dtypes, strict=True)
    )


def _copy_equal(
    inputs: Sequence[Bytes], outputs: Sequence[Bytes], tensor: str, names: Sequence[str]
) -> None:
    for data, name in zip(inputs, names, strict=True):
        if not np.array_equal(data, inputs[0]):
            raise UserError(
                f"{tensor!r} differs between policies {names[0]} and {name}; integers have no"
                " weighted sum"
            )
    for output in outputs:
        output[:] = inputs[0]


def _threads_and_block(what: Recipients, memory: int) -> tuple[int, int]:
    """Threads, and the elements that each holds at a time of every policy and soup."""
    per_element = sum(map(widest, what.layouts)) + what.out_width * len(what.weights)
    fixed = (2 * len(what.layouts) + len(what.weights)) * PAGE
    room = max(memory - anonymous_bytes() - RESERVE, memory // 4)
    # Two of three wait for the disk while one sums.
    threads = min(MOST_THREADS, 3 * _cores())
    while True:
        block = min(CHUNK, (room // threads - fixed) // per_element) & -SMALLEST_BLOCK
        # Small blocks cost more than the overlap of many threads gains.
        if threads == 1 or block >= min(CHUNK, 1 << 18):
            break
        threads -= 1
    if block < SMALLEST_BLOCK:
        least = 4 * (SMALLEST_BLOCK * per_element + fixed)
        raise UserError(
            f"{memory} bytes of memory are too few for {len(what.layouts)} policies and"
            f" {len(what.weights)} soups; allow at least {whole_pages(least)}"
        )
    return threads, block


def widest(layout: Layout) -> int:
    """Bytes of the widest element of a checkpoint."""
    return max((DTYPE_BITS[spec.dtype] for spec in layout.values()), default=8) // 8


def anonymous_bytes() -> int:
    """Memory of this process that is no file's; 0 where /proc does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s*(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def _cores() -> int:
    """That this process may use: a job's share of a node, where there is one."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
