"""Memory and files for direct I/O: whole pages, past the page cache."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PAGE = 4096  # bytes; what direct I/O wants offsets, lengths and addresses to be multiples of

Bytes = NDArray[np.uint8]


def page_buffer(nbytes: int) -> Bytes:
    """Zeroed memory [nbytes] that starts on a page."""
    memory = mmap.mmap(-1, max(nbytes, PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # a fault per 2 MiB instead of one per page
    return np.frombuffer(memory, np.uint8)[:nbytes]


def whole_pages(nbytes: int) -> int:
    """`nbytes` rounded up to pages."""
    return -(-nbytes // PAGE) * PAGE


def open_direct(path: Path, flags: int) -> int:
    """A descriptor with O_DIRECT, or -1 where the file system has none (tmpfs, macOS)."""
    direct = getattr(os, "O_DIRECT", 0)
    if not direct:
        return -1
    try:
        return os.open(path, flags | direct | os.O_CLOEXEC)
    except OSError:
        return -1
