"""One pass over the policies: chunks are read, summed and handed on, by several threads.

A thread reads its chunk of every policy, sums it for all soups, and hands the results on, so that
reading, arithmetic and writing of different chunks overlap. Memory is one set of buffers a thread.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

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
from vcsoup_dist.souping.process_memory import anonymous_memory

MOST_THREADS = 24
SMALLEST_BLOCK = 1 << 12  # elements
RESERVE = 1 << 26  # bytes of `memory` for threads, kernels and journals


class Sink:
    """Where the chunks of the soups go; this one keeps nothing."""

    def prepare(self, chunk: Chunk) -> None:
        """Called before the chunk is begun, in order, by one thread."""

    def place(self, chunk: Chunk, offset: int) -> int:
        """Where byte `offset` of the chunk's tensor lies in its file; memory is laid out alike."""
        return offset

    def put(self, soup: int, chunk: Chunk, offset: int, data: Bytes) -> None:
        """A part of a chunk, from byte `offset` of its tensor; called by any thread."""


@dataclass(frozen=True)
class WeightedSums:
    """What is summed: K soups of N policies."""

    layouts: Sequence[Layout]
    """[N]; all hold the chunks' tensors in the same shapes."""
    names: Sequence[str]
    """[N], for messages."""
    weights: Float64
    """[K, N]"""
    out_width: int
    """Bytes of the widest element of the soups."""


class FinishedChunk(NamedTuple):
    """A finished chunk: the digests of its bytes."""

    chunk: Chunk
    inputs: tuple[bytes, ...]
    """[N]"""
    outputs: tuple[bytes, ...]
    """[K]"""
    nonfinite: tuple[int, ...]
    """Which policies hold NaN or infinity there."""


def stream(
    sums: WeightedSums,
    chunks: Iterable[Chunk],
    sink: Sink,
    *,
    memory: int,
    allow_nonfinite: bool = False,
) -> Generator[FinishedChunk]:
    """Make all chunks; they come back in the order in which they are finished.

    memory: bytes, of all buffers and what the process holds already. Closing the generator
    finishes the chunks that were begun. UserError for NaN or infinity
    in a policy unless `allow_nonfinite`, for integers that differ between policies, for whatever
    reader and sink raise; other chunks that were begun are finished first.
    """
    threads, block = _threads_and_block(sums, memory)
    with ExitStack() as stack:
        readers = [stack.enter_context(CheckpointReader(layout)) for layout in sums.layouts]
        summing = _Summing(sums, readers, sink, block, allow_nonfinite)
        buffers: queue.SimpleQueue[_Buffers] = queue.SimpleQueue()
        for _ in range(threads):
            buffers.put(_Buffers.new(sums, block))
        pool = ThreadPoolExecutor(threads)
        stack.callback(pool.shutdown, cancel_futures=True)

        def sum_chunk(chunk: Chunk) -> FinishedChunk:
            held = buffers.get()
            try:
                return summing.chunk(chunk, held)
            finally:
                buffers.put(held)

        yield from _in_turn(pool, sum_chunk, chunks, sink.prepare, 2 * threads)


def _in_turn(
    pool: ThreadPoolExecutor,
    make: Callable[[Chunk], FinishedChunk],
    chunks: Iterable[Chunk],
    prepare: Callable[[Chunk], None],
    most: int,
) -> Iterator[FinishedChunk]:
    begun: set[Future[FinishedChunk]] = set()
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


def _finished(begun: set[Future[FinishedChunk]]) -> Iterator[FinishedChunk]:
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
    def new(cls, sums: WeightedSums, block: int) -> _Buffers:
        """For `block` elements of the widest dtype, wherever they begin in a page."""
        return cls(
            [page_buffer(block * widest(layout) + 2 * PAGE) for layout in sums.layouts],
            [page_buffer(block * sums.out_width + PAGE) for _ in sums.weights],
        )


@dataclass(frozen=True)
class _Summing:
    """What all threads share."""

    sums: WeightedSums
    readers: Sequence[CheckpointReader]
    sink: Sink
    block: int
    """Elements that a thread holds at a time of every policy and soup."""
    allow_nonfinite: bool

    def chunk(self, chunk: Chunk, buffers: _Buffers) -> FinishedChunk:
        """Read, sum and hand on a chunk."""
        widths = [DTYPE_BITS[layout[chunk.tensor].dtype] // 8 for layout in self.sums.layouts]
        out_width = DTYPE_BITS[chunk.dtype] // 8
        of_inputs = [xxhash.xxh3_128() for _ in self.readers]
        of_outputs = [xxhash.xxh3_128() for _ in buffers.outputs]
        nonfinite: set[int] = set()
        for begin in range(chunk.begin, chunk.end, self.block):
            count = min(self.block, chunk.end - begin)
            inputs = [
                reader.read(chunk.tensor, begin * width, count * width, buffer)
                for reader, width, buffer in zip(self.readers, widths, buffers.inputs, strict=True)
            ]
            for hasher, data in zip(of_inputs, inputs, strict=True):
                hasher.update(data.data)
            if not of_outputs:
                continue
            offset = begin * out_width
            shift = self.sink.place(chunk, offset) % PAGE
            outputs = [buffer[shift : shift + count * out_width] for buffer in buffers.outputs]
            nonfinite |= self._sum(chunk, inputs, outputs)
            for soup, (hasher, data) in enumerate(zip(of_outputs, outputs, strict=True)):
                hasher.update(data.data)
                self.sink.put(soup, chunk, offset, data)
        return FinishedChunk(
            chunk,
            tuple(each.digest() for each in of_inputs),
            tuple(each.digest() for each in of_outputs),
            tuple(sorted(nonfinite)),
        )

    def _sum(self, chunk: Chunk, inputs: Sequence[Bytes], outputs: Sequence[Bytes]) -> set[int]:
        """Fill `outputs`; which policies hold NaN or infinity."""
        names = self.sums.names
        if chunk.dtype not in FLOAT_DTYPES:
            _copy_equal(inputs, outputs, chunk.tensor, names)
            return set()
        dtypes = [layout[chunk.tensor].dtype for layout in self.sums.layouts]
        flags = weighted_sum(inputs, dtypes, self.sums.weights, chunk.dtype, outputs)
        nonfinite = {i for i, flag in enumerate(flags) if flag}
        if nonfinite and is_equal_buffer(chunk.tensor, inputs, dtypes):
            ones = np.ones((len(outputs), 1))
            weighted_sum(inputs[:1], dtypes[:1], ones, chunk.dtype, outputs)
            return set()
        if nonfinite and not self.allow_nonfinite:
            raise UserError(
                f"policy {names[min(nonfinite)]}: {chunk.tensor!r} holds NaN or infinity;"
                " its training has failed, take an earlier checkpoint"
            )
        return nonfinite


def is_equal_buffer(tensor: str, inputs: Sequence[Bytes], dtypes: Sequence[str]) -> bool:
    """Whether it is not a weight (a mask of -inf, say) and has the same bits in all policies."""
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


def _threads_and_block(sums: WeightedSums, memory: int) -> tuple[int, int]:
    """Threads, and the elements that each holds at a time of every policy and soup."""
    per_element = sum(map(widest, sums.layouts)) + sums.out_width * len(sums.weights)
    fixed = (2 * len(sums.layouts) + len(sums.weights)) * PAGE
    room = max(memory - anonymous_memory() - RESERVE, memory // 4)
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
            f"{memory} bytes of memory are too few for {len(sums.layouts)} policies and"
            f" {len(sums.weights)} soups; allow at least {whole_pages(least)}"
        )
    return threads, block


def widest(layout: Layout) -> int:
    """Bytes of the widest element of a checkpoint."""
    return max((DTYPE_BITS[spec.dtype] for spec in layout.values()), default=8) // 8


def _cores() -> int:
    """That this process may use: a job's share of a node, where there is one."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
