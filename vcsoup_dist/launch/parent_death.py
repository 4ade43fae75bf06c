"""Ranks and actors that die with the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int | None = None, by: int = signal.SIGKILL) -> None:
    """Have the kernel send the signal `by` to this process when the thread that forked it ends.

    `parent` is the pid of the parent where it is known; otherwise whoever is the parent now. Raises
    OSError where the kernel refuses (only Linux has prctl).
    """
    parent = os.getppid() if parent is None else parent
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, by, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the call; then no signal ever comes.
    if os.getppid() != parent:
        os.kill(os.getpid(), by)


def die_when_told() -> None:
    """Have SIGTERM end this process, an actor's, at once; what it writes it writes atomically.

    Ray's handler raises SystemExit wherever the main thread is: within a function of a user's, say,
    that then seems to have failed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def holding_alone(handle: int) -> None:
    """Keep a file descriptor, and what it locks, to this process until that ends.

    A child that is forked from now on, say by a function of a user's, would inherit it, and may
    live on when this process is killed. It gives the descriptor up, and dies with us.
    """
    if not _held:
        os.register_at_fork(before=_note_parent, after_in_child=_forked)
    _held.append(handle)


_held: list[int] = []
_parent = 0


def _note_parent() -> None:
    global _parent
    _parent = os.getpid()


def _forked() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()
    die_with_parent(_parent)
