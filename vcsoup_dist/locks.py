"""File locks: all that the project takes. A killed process holds none.

Locks are flock(2)'s unless a function says otherwise. Processes on several nodes see each other's
only on a file system that shares locks.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vcsoup_dist.processes import close_in_forks

EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH

POLL = 0.01  # seconds


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait for the lock of `path`, a file in a folder that exists, and hold it."""
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def wait_for_lock(lock: IO[str], kind: int) -> None:
    """Take a lock of an open file, EXCLUSIVE or SHARED, however long it takes."""
    fcntl.flock(lock, kind)


def try_lock(lock: IO[str], kind: int, timeout: float = 0.0) -> bool:
    """Take a lock of an open file; False where others still hold it after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL)


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock of `path`; False where there is no such file.

    It takes the lock for a moment itself.
    """
    if not path.exists():
        return False
    # Some file systems lock exclusively only what is open for writing. In a run directory of
    # another user that cannot be, and only an exclusive lock is seen.
    writable = os.access(path, os.W_OK)
    with open(path, "a" if writable else "r") as lock:
        return not try_lock(lock, EXCLUSIVE if writable else SHARED)


def sign(lock: IO[str]) -> None:
    """Write into a lock's file, open for appending, which process holds it."""
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()


def signature(lock: IO[str]) -> str:
    """Which process wrote into a lock's file last, as `pid 7 on host`."""
    lock.seek(0)
    return lock.read().strip()


def share_until_exit(path: Path) -> None:
    """Share the lock of `path` until this process ends; forked children do not hold it."""
    handle = os.open(path, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_SH)
    close_in_forks(handle)


def lock_for_process(file: IO[str]) -> None:
    """Take a lock of lockf's on a file open for writing; no child inherits it.

    The process gives it up when it closes any descriptor of the file.
    """
    fcntl.lockf(file, fcntl.LOCK_EX)


def is_locked_by_process(file: IO[str]) -> bool:
    """Whether another process holds the lock of `lock_for_process` on an open file."""
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX leaves open which of them it is
        return True
    return False
