"""Reading any part of any tensor of a checkpoint into memory of the caller.

Files that the page cache largely holds are read from there; all else but small parts is read past
it, so that streaming a model of any size leaves the cache of the machine nearly as it was.
Never through mmap, which is slow on network file systems (safetensors issue 562, vLLM pull
request 24469).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from vcsoup_dist.checkpoints.direct_io import PAGE, Bytes, is_cached, open_direct, whole_pages
from vcsoup_dist.checkpoints.layout import Extent, Layout
from vcsoup_dist.errors import UserError
from vcsoup_dist.files import GONE, out_of_reach

MAX_OPEN = 64  # files of one checkpoint; ZeRO-3 checkpoints have one for every rank
SAMPLED_PAGES = 32  # of a file: where most are not cached, the file is taken for not cached
SMALL = 1 << 16  # bytes; less comes faster with the kernel's read-ahead, and fills no cache
_COMPARED = 1 << 24  # bytes at a time


class CheckpointReader:
    """One checkpoint, of which parts are read, by several threads at once. Holds no data."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._files: dict[Path, _OpenFile] = {}  # least recently used first
        self._lock = threading.Lock()

    def read(self, name: str, offset: int, nbytes: int, buffer: Bytes) -> Bytes:
        """`nbytes` of tensor `name` from byte `offset` of it, as a view of `buffer`.

        buffer: of `page_buffer`, at least two pages larger than `nbytes`. UserError where a file
        ends too early or cannot be read.
        """
        runs = list(self._runs(name, offset, nbytes))
        if len(runs) == 1:
            with self._opened(runs[0].file) as file:
                return file.read_pages(name, runs[0].start, nbytes, buffer)
        view = buffer[:nbytes]
        self._fill(name, runs, view, keep=False)
        return view

    def read_into(self, name: str, offset: int, buffer: Bytes) -> None:
        """Fill `buffer`, any contiguous memory, with tensor `name` from byte `offset` of it.

        Through the page cache: for what will be read again.
        """
        self._fill(name, self._runs(name, offset, buffer.nbytes), buffer, keep=True)

    def _fill(self, name: str, runs: Iterable[Extent], buffer: Bytes, *, keep: bool) -> None:
        done = 0
        for run in runs:
            with self._opened(run.file) as file:
                file.read_plainly(name, run.start, buffer[done : done + run.nbytes], keep=keep)
            done += run.nbytes

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _runs(self, name: str, offset: int, nbytes: int) -> Iterator[Extent]:
        """The parts of a tensor's extents that hold its bytes [offset, offset + nbytes)."""
        spec = self.layout[name]
        if offset < 0 or offset + nbytes > spec.nbytes:
            raise ValueError(f"{name!r} has {spec.nbytes} bytes, asked {offset} + {nbytes}")
        begin = 0
        for extent in spec.extents:
            first, last = max(offset, begin), min(offset + nbytes, begin + extent.nbytes)
            if first < last:
                yield Extent(extent.file, extent.start + first - begin, last - first)
            begin += extent.nbytes

    @contextmanager
    def _opened(self, path: Path) -> Iterator[_OpenFile]:
        with self._lock:
            file = self._files.pop(path, None) or _OpenFile(path)
            self._files[path] = file
            file.readers += 1
            idle = [each for each in self._files.values() if not each.readers]
            for oldest in idle[: max(0, len(self._files) - MAX_OPEN)]:
                del self._files[oldest.path]
                oldest.close()
        try:
            yield file
        finally:
            with self._lock:
                file.readers -= 1

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def are_equal(layout: Layout, name: str, other: str, of: Layout | None = None) -> bool:
    """Whether two tensors are the same bytes of the same dtype and shape.

    of: the checkpoint that `other` is in, where that is not the same one.
    """
    of = layout if of is None else of
    left, right = layout[name], of[other]
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    if left.extents == right.extents:
        return True
    size = min(_COMPARED, left.nbytes)
    buffers = np.empty(size, np.uint8), np.empty(size, np.uint8)
    with CheckpointReader(layout) as one, CheckpointReader(of) as two:
        for begin in range(0, left.nbytes, _COMPARED):
            parts = [buffer[: left.nbytes - begin] for buffer in buffers]
            one.read_into(name, begin, parts[0])
            two.read_into(other, begin, parts[1])
            if not np.array_equal(parts[0], parts[1]):
                return False
    return True


class _OpenFile:
    """A file that is open twice: through the page cache, and past it where that is possible."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.readers = 0
        try:
            self._cached = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._explained(error) from error
        self._direct = open_direct(path, os.O_RDONLY)
        # To others mincore says that all is cached.
        state = os.fstat(self._cached)
        tells = state.st_uid == os.geteuid() or os.access(path, os.W_OK)
        # Asking about every part would take longer than some of the reads.
        step = max(PAGE, state.st_size // SAMPLED_PAGES)
        starts = range(0, state.st_size, step) if tells else range(0)
        cached = sum(is_cached(self._cached, start, 1) for start in starts)
        self._largely_cached = 2 * cached > len(starts)

    def read_pages(self, name: str, start: int, nbytes: int, buffer: Bytes) -> Bytes:
        """Bytes [start, start + nbytes) as a view of the page-aligned `buffer`."""
        shift = start % PAGE
        view = buffer[shift : shift + nbytes]
        if nbytes < SMALL:
            self.read_plainly(name, start, view, keep=True)
            return view
        if self._direct < 0 or self._is_cached(start, nbytes):
            self.read_plainly(name, start, view, keep=False)
            return view
        end = whole_pages(shift + nbytes)
        done = 0
        while done < nbytes:
            page = (shift + done) // PAGE * PAGE
            try:
                got = os.preadv(self._direct, [buffer.data[page:end]], start - shift + page)
            except OSError as error:
                if error.errno == errno.EINVAL:  # a device of larger blocks
                    self.read_plainly(name, start + done, view[done:], keep=False)
                    return view
                raise self._explained(error) from error
            done = self._reached(name, done, min(page + got - shift, nbytes))
        return view

    def read_plainly(self, name: str, start: int, view: Bytes, *, keep: bool) -> None:
        """Fill `view` with the bytes from `start` on; `keep` what was read in the page cache."""
        drop = not keep and not self._is_cached(start, view.nbytes)
        done = 0
        while done < view.nbytes:
            # One call reads at most 2 GiB, and may read less than asked.
            try:
                got = os.preadv(self._cached, [view.data[done:]], start + done)
            except OSError as error:
                raise self._explained(error) from error
            done = self._reached(name, done, done + got)
        if drop and hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._cached, start, done, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for handle in (self._cached, self._direct):
            if handle >= 0:
                with suppress(OSError):  # nothing was written
                    os.close(handle)

    def _is_cached(self, start: int, nbytes: int) -> bool:
        return self._largely_cached and is_cached(self._cached, start, nbytes)

    def _reached(self, name: str, before: int, now: int) -> int:
        if now <= before:
            raise UserError(f"{self.path}: ends within tensor {name!r}; it changed while read")
        return now

    def _explained(self, error: OSError) -> UserError:
        if error.errno in GONE:
            return out_of_reach(error, self.path)
        return UserError(f"{self.path}: cannot be read: {error.strerror}")
