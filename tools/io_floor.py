"""The floor of a merge: its reads, writes and fsyncs without its arithmetic.

    python tools/io_floor.py P0 P1 --outputs OUT0 OUT1 [--threads 4] [--buffered]

reads every shard of every input once, in pieces of 8 MiB by several threads, and writes files of
the same names and sizes into every output, past the page cache unless --buffered.
"""

from __future__ import annotations

import argparse
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PIECE = 8 << 20


class _CopiedFile:
    """One file of every input, and the files of the same size and name in every output."""

    def __init__(self, inputs: list[Path], outputs: list[Path], direct: bool) -> None:
        flags = os.O_DIRECT if direct else 0
        self.size = inputs[0].stat().st_size
        if any(path.stat().st_size != self.size for path in inputs):
            raise SystemExit(f"the floor needs inputs with equal shards; {inputs[0].name} differs")
        self.direct = direct
        self.inputs = [os.open(path, os.O_RDONLY | flags) for path in inputs]
        self.outputs = [os.open(p, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags) for p in outputs]
        for fd in self.outputs:
            os.posix_fallocate(fd, 0, self.size)
        if not direct:
            for fd in self.inputs:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self.left = -(-self.size // PIECE)
        self.lock = threading.Lock()

    def copy(self, offset: int, buffers: list[mmap.mmap]) -> None:
        length = min(PIECE, self.size - offset)
        asked = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE if self.direct else length
        for fd, buffer in zip(self.inputs, buffers, strict=True):
            got = os.preadv(fd, [memoryview(buffer)[:asked]], offset)
            if got != length:
                raise SystemExit(f"read {got} bytes instead of {length}")
            if not self.direct:
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
        for number, fd in enumerate(self.outputs):
            data = memoryview(buffers[number % len(buffers)])[:asked]
            if os.pwritev(fd, [data], offset) != asked:
                raise SystemExit("short write")
        with self.lock:
            self.left -= 1
            last = not self.left
        if last:
            self._finish()

    def _finish(self) -> None:
        for fd in self.outputs:
            os.ftruncate(fd, self.size)
            os.fsync(fd)
            if not self.direct:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for fd in (*self.inputs, *self.outputs):
            os.close(fd)


def _huge_pages(nbytes: int) -> mmap.mmap:
    """Memory as the merger has it: in small pages, direct I/O is cut into small requests."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def run_floor(policies: list[Path], outputs: list[Path], threads: int, direct: bool) -> None:
    names = [path.name for path in sorted(policies[0].glob("*.safetensors"))]
    for output in outputs:
        output.mkdir(parents=True)
    files = (
        _CopiedFile([p / name for p in policies], [o / name for o in outputs], direct)
        for name in names
    )
    pieces = ((file, offset) for file in files for offset in range(0, file.size, PIECE))
    lock = threading.Lock()

    def work() -> None:
        buffers = [_huge_pages(PIECE) for _ in policies]
        while True:
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            piece[0].copy(piece[1], buffers)

    with ThreadPoolExecutor(threads) as pool:
        for worker in [pool.submit(work) for _ in range(threads)]:
            worker.result()
    for output in outputs:
        folder = os.open(output, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policies", type=Path, nargs="+")
    parser.add_argument("--outputs", type=Path, nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--buffered", action="store_true", help="through the page cache")
    args = parser.parse_args()
    run_floor(args.policies, args.outputs, args.threads, not args.buffered)


if __name__ == "__main__":
    main()
