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
