"""Leases: who works where several hosts share a file system, whatever its locks are worth.

A lease is a small file that its process makes by an atomic create and renews every few seconds. On
some file systems locks fail (Lustre without `-o flock`), on some every host has its own (Lustre's
`localflock`, sshfs), and on others a host whose link is cut loses them without a word (GlusterFS
after 42 s). So a process on another host counts as ended only after `takeover` seconds in which its
lease was seen and did not change; then the lease is taken away. A process that cannot renew its
lease for two thirds of that, or finds it taken away, ends itself: two never work at a time.

    NAME.held                           of one process alone
    NAME.shared-<host>-<pid>-<nonce>    of one of several

A process of the same host is known to have ended without any waiting.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from vcsoup_dist.errors import EXIT_PREEMPTED, UserError
from vcsoup_dist.processes import started_at

log = logging.getLogger("vcsoup")

LOOK = 0.5  # seconds between two looks at another's lease
CLOCKS = 3600.0  # seconds by which no clocks of hosts differ
SHORTEST = 3.0  # seconds
BOOT = Path("/proc/sys/kernel/random/boot_id")
PIDS = "/proc/self/ns/pid"


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as its file says."""

    host: str
    boot: str
    """Of the kernel, and the space of its pids: after a reboot a host is another one, and so is a
    container of the same name."""
    pid: int
    started: int
    nonce: str
    takeover: float
    """Seconds after which the holder will have ended itself; see the function of that name."""

    @property
    def text(self) -> str:
        """Such as `pid 7 on h2`."""
        return f"pid {self.pid} on {self.host}"

    @property
    def process(self) -> tuple[str, str, int, int]:
        """What tells it from all others."""
        return self.host, self.boot, self.pid, self.started

    @property
    def is_of_this_host(self) -> bool:
        """Whether its process is one of those that this process can see."""
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    @property
    def is_alive_here(self) -> bool:
        """Whether a process of this host is the holder."""
        return self.is_of_this_host and started_at(self.pid) == self.started


@dataclass(frozen=True)
class Seen:
    """A lease as it was read."""

    holder: Holder | None
    """None where the file is not whole: it is being written, or its process died at that."""
    content: bytes

    @property
    def text(self) -> str:
        """Who it is, for a message."""
        return self.holder.text if self.holder else "a process that has not said its name"


@cache
def takeover() -> float:
    """Seconds without a sign of life after which a process on another host counts as ended.

    UserError where VCSOUP_TAKEOVER is no such number.
    """
    text = os.environ.get("VCSOUP_TAKEOVER", "90")
    with contextlib.suppress(ValueError):
        if SHORTEST <= (seconds := float(text)) < math.inf:
            return seconds
    raise UserError(f"VCSOUP_TAKEOVER: {text!r}; give seconds, {SHORTEST:.0f} or more, such as 90")


def read(path: Path) -> Seen | None:
    """The lease at `path`; None where there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        fields = json.loads(content)
        del fields["beat"]
        return Seen(Holder(**fields), content)
    except (ValueError, TypeError, KeyError):
        return Seen(None, content)


def held_by_one(path: Path) -> Path:
    """The lease of a process that holds `path` alone."""
    return path.with_name(f"{path.name}.held")


def shared_leases(path: Path) -> list[Path]:
    """The leases of those that share `path`."""
    return sorted(path.parent.glob(f"{path.name}.shared-*"))


def make(path: Path) -> bool:
    """Make the lease at `path` and keep renewing it; False where there is one already."""
    holder = Holder(
        socket.gethostname(), _boot(), os.getpid(), started_at(os.getpid()), _nonce(), takeover()
    )
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(handle, _content(holder, 0))
        os.fsync(handle)
    except OSError as error:  # a full disk
        path.unlink(missing_ok=True)
        error.filename = str(path)
        raise
    finally:
        os.close(handle)
    _renewed.add(path, holder)
    return True


def make_shared(path: Path) -> Path:
    """Make a lease of one of several that share `path`."""
    lease = path.with_name(
        f"{path.name}.shared-{socket.gethostname()}-{os.getpid()}-{_nonce()[:8]}"
    )
    make(lease)
    return lease


def give_back(path: Path) -> None:
    """Remove a lease that this process made; one that is out of reach runs out by itself."""
    if _renewed.remove(path):
        with contextlib.suppress(OSError):
            path.unlink()


def is_kept(path: Path) -> bool:
    """Whether the lease at `path` is still this process's."""
    seen = read(path)
    holder = _renewed.holders.get(path)
    return seen is not None and holder is not None and seen.holder == holder


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
        if holder and holder.is_alive_here:
            return holder.text
        if (holder and (holder.is_of_this_host or holder.process in _ended)) or _is_old(path):
            if who := _take_away(path, seen):
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
                    _ended.add(first.holder.process)
                if who := _take_away(path, first):
                    return who
        if watched and not told and waited > 2 * LOOK:
            path, first = next(iter(watched.items()))
            log.info(
                "%s is held by %s; it is taken over after %.0f s without a sign of life",
                *(path.stem, first.text, first.holder.takeover if first.holder else takeover()),
            )
            told = True
    return ""


_ended: set[tuple[str, str, int, int]] = set()
"""Processes on other hosts that have ended; they renewed all of their leases, or none."""


def shows_life(path: Path) -> bool:
    """Whether the lease at `path` is, by this host's clock, one that was renewed of late."""
    seen = read(path)
    if seen is None:
        return False
    if seen.holder and seen.holder.is_of_this_host:
        return seen.holder.is_alive_here
    with contextlib.suppress(FileNotFoundError):
        patience = seen.holder.takeover if seen.holder else takeover()
        return abs(time.time() - path.stat().st_mtime) < patience
    return False


def _is_old(path: Path) -> bool:
    """Whether it was renewed so long ago that no difference between clocks explains it."""
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > CLOCKS
    return False


def _take_away(path: Path, seen: Seen) -> str:
    """Remove the lease that was seen there, and no other; whose it is where another came."""
    aside = path.with_name(f".{path.name}.{_nonce()}")
    now = read(path)
    if now is None:
        return ""
    if now != seen:
        return now.text
    try:
        path.rename(aside)
    except FileNotFoundError:
        return ""
    taken = read(aside)
    try:
        if taken != seen:  # another was faster, and this is its new one
            os.link(aside, path)
            return taken.text if taken else ""
    except FileExistsError:  # then its process finds that it is gone
        pass
    finally:
        aside.unlink(missing_ok=True)
    return ""


def _content(holder: Holder, beat: int) -> bytes:
    return (json.dumps({**asdict(holder), "beat": f"{beat:012}"}) + "\n").encode()


def _nonce() -> str:
    return secrets.token_hex(8)


def _boot() -> str:
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    return f"{boot} {os.readlink(PIDS) if os.path.exists(PIDS) else ''}"


class _Renewed:
    """The leases of this process, and the two threads that keep them.

    One renews: it may block for as long as the file system does. The other looks at the clock.
    """

    def __init__(self) -> None:
        self.trouble = "no answer"
        self.holders: dict[Path, Holder] = {}
        self.renewed: dict[Path, float] = {}
        """When each was renewed last, by the monotonic clock."""
        self.threads: list[threading.Thread] = []
        self.change = threading.Lock()

    def add(self, path: Path, holder: Holder) -> None:
        with self.change:
            self.renewed[path] = time.monotonic()
            self.holders[path] = holder
            if not self.threads:
                for run in (self._renew, self._watch):
                    self.threads.append(threading.Thread(target=run, daemon=True))
                    self.threads[-1].start()

    def remove(self, path: Path) -> bool:
        with self.change:
            self.renewed.pop(path, None)
            return self.holders.pop(path, None) is not None

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        self.__init__()  # type: ignore[misc]

    def _renew(self) -> None:
        beat = 0
        while True:
            beat += 1
            for path, holder in list(self.holders.items()):
                began = time.monotonic()
                try:
                    kept = _renew(path, holder, beat)
                except OSError as error:  # `_watch` counts the seconds
                    self.trouble = str(error.strerror)
                    continue
                with self.change:
                    if self.holders.get(path) is not holder:  # it was given back meanwhile
                        continue
                    self.renewed[path] = began
                if not kept:
                    _end(path, "another process has taken it over, or its file was removed")
            time.sleep(takeover() / 18)

    def _watch(self) -> None:
        woke = time.monotonic()
        grace = 0.0
        while True:
            time.sleep(LOOK)
            now = time.monotonic()
            if now - woke > 10 * LOOK:  # stopped as a whole; the other thread looks first
                grace = now + 10 * LOOK
            woke = now
            with self.change:
                silent, path = max(
                    ((now - at, path) for path, at in self.renewed.items()), default=(0.0, Path())
                )
            if silent > takeover() * 2 / 3 and now > grace:
                _end(path, f"its file could not be renewed for {silent:.0f} s ({self.trouble})")


def _renew(path: Path, holder: Holder, beat: int) -> bool:
    """Write a sign of life; False where the lease is no longer the holder's."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if holder.nonce.encode() not in os.read(handle, 4096):
            return False
        os.pwrite(handle, _content(holder, beat), 0)
        os.fsync(handle)
    finally:
        os.close(handle)
    return True


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
