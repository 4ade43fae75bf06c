"""Memory and files for direct I/O: whole pages, past the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PAGE = max(4096, mmap.PAGESIZE)
"""Bytes. Direct I/O wants offsets, lengths and addresses to be multiples of 4096 at most, and
must not share a page of the cache with plain writes."""

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


def is_cached(descriptor: int, start: int, nbytes: int) -> bool:
    """Whether the page cache holds all of these bytes of a file; False where nobody can say.

    Asked of mincore(2), which tells the truth to the file's owner and to who may write it. A read
    with RWF_NOWAIT would start read-ahead, and so read twice.
    """
    if not sys.platform.startswith("linux") or nbytes == 0:
        return False
    begin = start // PAGE * PAGE
    length = start + nbytes - begin
    states = np.zeros(whole_pages(length) // PAGE, np.uint8)
    try:
        mapped = mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=begin)
    except (OSError, ValueError):  # no such file system, or the file is shorter
        return False
    with mapped:
        view = np.frombuffer(mapped, np.uint8)
        failed = _mincore()(view.ctypes.data, length, states.ctypes.data)
        del view  # else the mapping cannot be closed
    return failed == 0 and bool((states & 1).all())


@cache
def _mincore() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None).mincore
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    return function
