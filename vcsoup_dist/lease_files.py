"""The files of leases (leases.py): what they say, and their removal."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.processes import is_hidden, started_at

CLOCKS = 86400.0  # seconds by which no clocks of hosts differ
SHORTEST = 3.0  # seconds
GONE = (errno.ENOENT, errno.ESTALE)  # the latter on NFS, for a file that another host removed
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
        return self.is_of_this_host and (
            started_at(self.pid) == self.started or is_hidden(self.pid)
        )


@dataclass(frozen=True)
class Seen:
    """A lease as it was read."""

    holder: Holder | None
    """None where the file is not whole: it is being written, or its process died at that."""
    content: bytes
    beat: int = 0
    """Number of the round in which its process renewed all that it held."""

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
    except OSError as error:
        if error.errno not in GONE:
            raise
        return None
    try:
        fields = json.loads(content)
        beat = int(fields.pop("beat"))
        return Seen(Holder(**fields), content, beat)
    except (ValueError, TypeError, KeyError):
        return Seen(None, content)


def held_by_one(path: Path) -> Path:
    """The lease of a process that holds `path` alone."""
    return path.with_name(f"{path.name}.held")


def shared_leases(path: Path) -> list[Path]:
    """The leases of those that share `path`."""
    return sorted(path.parent.glob(f"{path.name}.shared-*"))


def own_holder() -> Holder:
    """This process, for a new lease."""
    pid = os.getpid()
    return Holder(
        socket.gethostname(), _boot(), pid, started_at(pid), secrets.token_hex(8), takeover()
    )


def create(path: Path, holder: Holder, beat: int) -> bool:
    """Write a new lease; False where there is one already."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(handle, _content(holder, beat))
        os.fsync(handle)
    except OSError as error:  # a full disk
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):  # and not another's by now
                path.unlink()
        error.filename = str(path)
        raise
    finally:
        os.close(handle)
    return True


def renew(path: Path, holder: Holder, beat: int) -> bool:
    """Write a sign of life; False where the lease is no longer the holder's."""
    try:
        handle = os.open(path, os.O_RDWR)
        try:
            if holder.nonce.encode() not in os.read(handle, 4096):
                return False
            os.pwrite(handle, _content(holder, beat), 0)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False
    return True


def is_of(path: Path, holder: Holder) -> bool:
    """Whether the lease at `path` is the holder's."""
    seen = read(path)
    return seen is not None and seen.holder == holder


def remove_of(path: Path, holder: Holder) -> None:
    """Remove the holder's lease, and no other that came in its place."""
    # The thread that renews it may be about to do so, and it is not what was seen then.
    while (seen := read(path)) is not None and seen.holder == holder:
        take_away(path, seen)


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


def is_old(path: Path) -> bool:
    """Whether it was renewed so long ago that no difference between clocks explains it."""
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > CLOCKS
    return False


def take_away(path: Path, seen: Seen) -> str:
    """Remove the lease that was seen there, and no other; whose it is where another came."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
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


def _boot() -> str:
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    return f"{boot} {os.readlink(PIDS) if os.path.exists(PIDS) else ''}"
