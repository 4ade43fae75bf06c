"""Locks: all that the project takes. A killed process holds none.

On a file system of one host they are flock(2)'s, unless a function says otherwise. Where several
hosts may share it, each is a lease as well (leases.py): there flock may fail, be one host's own, or
be lost.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Self

from vcsoup_dist import leases
from vcsoup_dist.file_systems import may_be_shared
from vcsoup_dist.lease_files import held_by_one, read, shared_leases, shows_life, takeover
from vcsoup_dist.processes import kept_from_forks

EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH

POLL = 0.01  # seconds
ENTRY = 5.0  # seconds for others that share a lock to enter, one after the other

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of a file system that has no locks, such as Lustre's without `-o flock`."""


class Lock:
    """The lock of a file in a folder that exists; held until it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[str] = open(path, "a+")  # noqa: SIM115  # see `close`
        self.is_shared_by_hosts = may_be_shared(path)
        self.holder = ""
        """Who had it when `take` failed, where that is known better than by `signature`."""
        self._share: Path | None = None
        self._holds_one = False

    def take(self, kind: int, timeout: float | None = 0.0) -> bool:
        """Take it, EXCLUSIVE or SHARED; False where others still hold it after `timeout` seconds.

        None: however long it takes. Where a process on another host may have ended, this waits
        until that is known, whatever `timeout` says. One that is held shared may be taken
        exclusively, and the other way round.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        looked = False
        while True:
            taken = flock(self.file, kind, deadline) is not False
            if taken and (not self.is_shared_by_hosts or self._lease(kind)):
                return True
            if not taken and self.is_shared_by_hosts and not looked:
                looked = True
                if self._is_left(kind):
                    deadline = time.monotonic() + takeover()
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(POLL)

    def sign(self, who: str = "") -> None:
        """Write into its file which process holds it, after `who`."""
        self.file.truncate(0)
        self.file.write(f"{who}pid {os.getpid()} on {socket.gethostname()}\n")
        self.file.flush()

    def signature(self) -> str:
        """Which process holds it, or wrote into its file last, as `pid 7 on host`."""
        self.file.seek(0)
        return self.holder or self.file.read().strip()

    def is_kept(self) -> bool:
        """Whether it has not been lost since it was taken exclusively."""
        return not self._holds_one or leases.is_kept(held_by_one(self.path))

    def close(self) -> None:
        """Give it up."""
        if self._share:
            leases.give_back(self._share)
        if self._holds_one:
            leases.give_back(held_by_one(self.path))
        self._share, self._holds_one = None, False
        with suppress(OSError):  # a file system that is out of reach has given it up
            self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_left(self, kind: int) -> bool:
        """Whether a lost host has it, whose lock the file server keeps for a while."""
        others = [held_by_one(self.path), *([] if kind == SHARED else shared_leases(self.path))]
        if self._holds_one:
            del others[0]
        others = [each for each in others if each != self._share and read(each)]
        self.holder = leases.wait_until_ended(others)
        return bool(others) and not self.holder

    def _lease(self, kind: int) -> bool:
        one = held_by_one(self.path)
        # Those that share the lock hold this one too, for a moment.
        until = time.monotonic() + ENTRY
        while not self._holds_one:
            self._holds_one = leases.make(one)
            if not self._holds_one:
                self.holder = leases.wait_until_ended([one])
                if self.holder and (kind == EXCLUSIVE or time.monotonic() > until):
                    return False
                time.sleep(POLL)
        others = [] if kind == SHARED else shared_leases(self.path)
        self.holder = leases.wait_until_ended([e for e in others if e != self._share])
        if kind == SHARED and self._share is None:
            self._share = leases.make_shared(self.path)
        if kind == SHARED or self.holder:
            leases.give_back(one)
            self._holds_one = False
        return not self.holder


def flock(file: IO[str] | int, kind: int, deadline: float | None) -> bool | None:
    """Take flock(2)'s lock of an open file until `deadline`, by the monotonic clock.

    Returns whether it was taken; None where the file system has none.
    """
    while True:
        try:
            fcntl.flock(file, kind if deadline is None else kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if deadline is None or time.monotonic() >= deadline:
                return False
            time.sleep(POLL)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return None


@contextmanager
def exclusive(path: Path) -> Iterator[Lock]:
    """Wait for the lock of `path`, a file in a folder that exists, and hold it."""
    with Lock(path) as lock:
        lock.take(EXCLUSIVE, timeout=None)
        yield lock


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock of `path`; False where there is no such file.

    It takes the lock for a moment itself. Of processes on other hosts it may see those that were
    killed a short while ago as well.
    """
    if not path.exists():
        return False
    # Some file systems lock exclusively only what is open for writing. In a run directory of
    # another user that cannot be, and only an exclusive lock is seen.
    writable = os.access(path, os.W_OK)
    with open(path, "a" if writable else "r") as file:
        if flock(file, EXCLUSIVE if writable else SHARED, time.monotonic()) is False:
            return True
    if not may_be_shared(path):
        return False
    return any(map(shows_life, [held_by_one(path), *shared_leases(path)]))


def remove_lock(path: Path) -> None:
    """Remove a lock's file, which this process may hold, and what else there is of it."""
    path.unlink(missing_ok=True)  # first: whoever finds a lease gone looks whether its lock is
    for lease in [held_by_one(path), *shared_leases(path)]:
        if not leases.give_back(lease):  # or a next one's that has come meanwhile would go
            lease.unlink(missing_ok=True)


@contextmanager
def shared_by_process(path: Path) -> Iterator[None]:
    """Share the lock of `path`, a file that exists; forked children do not hold it."""
    handle = os.open(path, os.O_RDWR)
    with kept_from_forks(handle):
        flock(handle, SHARED, None)
        lease = leases.make_shared(path) if may_be_shared(path) else None
        try:
            yield
        finally:
            if lease is not None:
                leases.give_back(lease)


def share_until_exit(path: Path) -> None:
    """Share the lock of `path` as `shared_by_process` does, until this process ends."""
    _until_exit.enter_context(shared_by_process(path))


_until_exit = ExitStack()
atexit.register(_until_exit.close)


def lock_for_process(file: IO[str], path: Path) -> None:
    """Take a lock of lockf's on a file open for writing, to be `path`; no child inherits it.

    The process gives it up when it closes any descriptor of the file, and by `unlock_for_process`.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    if may_be_shared(path.parent):
        leases.make(held_by_one(path), ends=False)


def unlock_for_process(path: Path) -> None:
    """Give up what `lock_for_process` took beside the lock."""
    leases.give_back(held_by_one(path))


def is_locked_by_process(file: IO[str]) -> bool:
    """Whether another process holds the lock of `lock_for_process` on an open file."""
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # POSIX leaves open which of them it is
            return True
        if error.errno not in NO_LOCKS:
            raise
    path = Path(file.name)
    return may_be_shared(path) and shows_life(held_by_one(path))
