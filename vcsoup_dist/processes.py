"""Processes of this machine: dying with a parent, locks that forks must not keep, and /proc."""

from __future__ import annotations

import ctypes
import glob
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int | None = None, by: int = signal.SIGKILL) -> None:
    """Have the kernel send the signal `by` to this process when the thread that forked it ends.

    `parent` is the parent's pid where the caller knows it; the default is the parent now. Raises
    OSError where the kernel refuses (only Linux has prctl).
    """
    parent = os.getppid() if parent is None else parent
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, by, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the call; then no signal ever comes.
    if os.getppid() != parent:
        os.kill(os.getpid(), by)


@contextmanager
def kept_from_forks(handle: int) -> Iterator[None]:
    """Keep a file descriptor, and the lock on it, to this process, and close it in the end.

    A child forked meanwhile, say by a user's function, would inherit the descriptor and may
    outlive this process. It closes the descriptor, and dies with this process.
    """
    global _hooked
    if not _hooked:
        os.register_at_fork(before=_note_parent, after_in_child=_after_fork)
        _hooked = True
    _kept.append(handle)
    try:
        yield
    finally:
        if handle in _kept:  # not so in a child
            _kept.remove(handle)
            with suppress(OSError):  # a file system that is out of reach has given the lock up
                os.close(handle)


_hooked = False
_kept: list[int] = []
_parent = 0


def _note_parent() -> None:
    global _parent
    _parent = os.getpid()


def _after_fork() -> None:
    for handle in _kept:
        os.close(handle)
    _kept.clear()
    die_with_parent(_parent)


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it ended meanwhile
                continue
            # "pid (name) state parent ..."; the name may hold spaces and brackets.
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def started_at(pid: int) -> int:
    """When a process started, in clock ticks since the kernel did; -1 where it has ended.

    With its pid it tells the process from all others of this machine.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    fields = stat.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])


def is_hidden(pid: int) -> bool:
    """Whether a process lives of which /proc says nothing: another user's, under `hidepid`.

    With `hidepid=1` its folder is there, with files that are refused.
    """
    if os.access(f"/proc/{pid}/stat", os.R_OK):
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def process_name(pid: int) -> str:
    """Name of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def pids_with_open(path: Path) -> list[int]:
    """Other processes that have a file open, among those that this user may inspect."""
    found = set()
    for handle in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            if os.path.samefile(path, handle):
                found.add(int(Path(handle).parts[2]))
        except OSError:  # closed meanwhile
            continue
    return sorted(found - {os.getpid()})
