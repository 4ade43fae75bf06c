"""Leases: who works where several hosts share a file system, whatever its locks are worth.

A lease is a small file that its process makes by an atomic create and renews every few seconds. On
some file systems locks fail (Lustre without `-o flock`), on some every host has its own (Lustre's
`localflock`, sshfs), and on others a host whose link is cut loses them without a word (GlusterFS
after 42 s). So a process on another host counts as ended only after `takeover` seconds in which its
lease was seen and did not change; then the lease is taken away. A process that cannot renew its
lease for two thirds of that, or finds it taken away, ends itself, and looks before it publishes: a
process that was stopped and goes on may work for a moment, but nothing is published by two.

    NAME.held                           of one process alone
    NAME.shared-<host>-<pid>-<nonce>    of one of several

A process of the same host is known to have ended without any waiting.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.errors import EXIT_PREEMPTED
from vcsoup_dist.lease_files import (
    Holder,
    Seen,
    create,
    is_of,
    is_old,
    own_holder,
    read,
    remove_of,
    renew,
    take_away,
    takeover,
)

log = logging.getLogger("vcsoup")

LOOK = 0.5  # seconds between two looks at another's lease


def make(path: Path, ends: bool = True) -> bool:
    """Make the lease at `path` and keep renewing it; False where there is one already.

    ends: whether the process ends itself where the lease is lost.
    """
    while True:
        began, holder = _clock(), own_holder()
        if not create(path, holder, _renewed.beat):
            return False
        if _clock() - began < takeover() / 2:
            _renewed.add(path, holder, began, ends)
            return True
        remove_of(path, holder)  # the file system stood still: another may have waited long enough


def make_shared(path: Path) -> Path:
    """Make a lease of one of several that share `path`."""
    lease = path.with_name(
        f"{path.name}.shared-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    )
    make(lease)
    return lease


def give_back(path: Path) -> bool:
    """Remove a lease; False where it is not one that this process made.

    One that is out of reach is removed later, and one that another has taken over stays.
    """
    holder = _renewed.remove(path)
    if holder is None:
        return False
    try:
        remove_of(path, holder)
    except OSError:
        _renewed.left.add((path, holder))
    return True


def is_kept(path: Path) -> bool:
    """Whether the lease at `path` is still this process's."""
    holder = _renewed.holders.get(path)
    return holder is not None and is_of(path, holder)


def wait_until_ended(paths: Sequence[Path]) -> str:
    """Wait until each lease is gone, or that of a process that is known to have ended.

    Returns an empty text then, and they are gone; at a sign of life, whose it is.
    """
    watched: dict[Path, Seen] = {}
    for path in paths:
        seen = read(path)
        holder = seen.holder if seen else None
        if seen is None:
            continue
        is_left = holder is not None and (path, holder) in _renewed.left
        if holder and holder.is_alive_here and not is_left:
            return holder.text
        if (holder and holder.is_of_this_host) or _has_ended(seen) or is_old(path):
            if who := take_away(path, seen):
                return who
        else:
            watched[path] = seen
    return _watch(watched)


def _watch(watched: dict[Path, Seen]) -> str:
    """Wait until the leases are gone or have not changed for long enough; whose has."""
    began = time.monotonic()
    told = False
    while watched:
        time.sleep(LOOK)
        waited = time.monotonic() - began
        for path, first in list(watched.items()):
            patience = first.holder.takeover if first.holder else takeover()
            now = read(path)
            if now is not None and now != first:
                return now.text
            if now is not None and waited <= patience:
                continue
            del watched[path]
            if now is not None:
                log.warning("%s: nothing from %s for %.0f s", path.name, first.text, patience)
                if first.holder:
                    _ended[first.holder.process] = first.beat
                if who := take_away(path, first):
                    return who
        if watched and not told and waited > 2 * LOOK:
            path, first = next(iter(watched.items()))
            log.info(
                "%s is held by %s; it is taken over after %.0f s without a sign of life",
                *(path.stem, first.text, first.holder.takeover if first.holder else takeover()),
            )
            told = True
    return ""


_ended: dict[tuple[str, str, int, int], int] = {}
"""Processes on other hosts that left a lease without a sign of life -> the beat of that lease."""


def _has_ended(seen: Seen) -> bool:
    """Whether its process is known to have ended: it has renewed none of its leases since, where
    one that could not remove a lease but lives has renewed the others."""
    beat = _ended.get(seen.holder.process) if seen.holder else None
    return beat is not None and seen.beat <= beat + 1


def _clock() -> float:
    """Seconds, those in which the machine was suspended among them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _is_forsaken(lease: Path) -> bool:
    """Whether the lock is gone whose lease this is: who was done with it has removed it."""
    name = lease.name.removesuffix(".held").rpartition(".shared-")
    return not lease.exists() and not lease.with_name(name[0] or name[2]).exists()


class _Renewed:
    """The leases of this process, and the two threads that keep them.

    One renews: it may block for as long as the file system does. The other looks at the clock.
    """

    def __init__(self) -> None:
        self.trouble = "no answer"
        self.beat = 0
        self.holders: dict[Path, Holder] = {}
        self.renewed: dict[Path, float] = {}
        """When each without which this process ends was renewed last, by `_clock`."""
        self.left: set[tuple[Path, Holder]] = set()
        """Leases that were given back and could not be removed yet."""
        self.threads: list[threading.Thread] = []
        self.change = threading.Lock()

    def add(self, path: Path, holder: Holder, began: float, ends: bool) -> None:
        with self.change:
            if ends:
                self.renewed[path] = began
            self.holders[path] = holder
            if not self.threads:
                for run in (self._renew, self._watch):
                    self.threads.append(threading.Thread(target=run, daemon=True))
                    self.threads[-1].start()

    def remove(self, path: Path) -> Holder | None:
        with self.change:
            self.renewed.pop(path, None)
            return self.holders.pop(path, None)

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        self.__init__()  # type: ignore[misc]

    def _renew(self) -> None:
        warned = False
        while True:
            self.beat += 1
            began = _clock()
            for path, holder in list(self.holders.items()):
                self._renew_one(path, holder)
            took = _clock() - began
            if took > takeover() / 9 and not warned:
                log.warning(
                    "the %d leases of this process took %.0f s to renew; at %.0f s it would end "
                    "itself: is the file system slow? VCSOUP_TAKEOVER gives more time",
                    *(len(self.holders), took, takeover() * 2 / 3),
                )
                warned = True
            for path, holder in list(self.left):
                with contextlib.suppress(OSError):  # it is tried again
                    remove_of(path, holder)
                    self.left.discard((path, holder))
            time.sleep(takeover() / 18)

    def _renew_one(self, path: Path, holder: Holder) -> None:
        began = _clock()
        try:
            kept = renew(path, holder, self.beat)
            is_needed = not kept and not _is_forsaken(path)
        except OSError as error:  # `_watch` counts the seconds
            self.trouble = str(error.strerror)
            return
        with self.change:
            if self.holders.get(path) is not holder:  # it was given back meanwhile
                return
            ends = path in self.renewed
            if kept:
                if ends:
                    self.renewed[path] = began
                return
            if not (ends and is_needed):
                self.renewed.pop(path, None)
                del self.holders[path]
                return
        _end(path, "another process has taken it over, or its file was removed")

    def _watch(self) -> None:
        woke = _clock()
        grace = 0.0
        while True:
            time.sleep(LOOK)
            now = _clock()
            if now - woke > max(2 * LOOK, takeover() / 18):  # stopped as a whole
                grace = now + takeover() / 9  # the other thread looks first
            woke = now
            with self.change:
                silent, path = max(
                    ((now - at, path) for path, at in self.renewed.items()), default=(0.0, Path())
                )
            if silent > takeover() * 2 / 3 and (now > grace or silent > takeover()):
                _end(path, f"its file could not be renewed for {silent:.0f} s ({self.trouble})")


def _end(path: Path, reason: str) -> None:
    words = (
        f"vcsoup: {path}: the hold on it is lost: {reason}; nothing that was published is lost: "
        "run the same command to resume\n"
    )
    # A thread cannot stop the others, and what it writes to may wait for the file system for ever.
    last = threading.Thread(target=os.write, args=(2, words.encode()), daemon=True)
    last.start()
    last.join(LOOK)
    os._exit(EXIT_PREEMPTED)


_renewed = _Renewed()
os.register_at_fork(after_in_child=_renewed.forget)
