"""Signals that ask a command to stop, and forwarding them to its ranks."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from vcsoup_dist.errors import Preempted
from vcsoup_dist.progress import clear_bar

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
"""These ask any command to stop."""
RANK_SIGNALS = (*STOP_SIGNALS, signal.SIGINT)
"""These ask ranks to save and stop; SIGINT ends all other work at once."""
STOPPING = b"vcsoup: saving after this step, then it stops; Ctrl-C again ends it at once, unsaved\n"

_received: int | None = None
"""The signal that asked this command to stop while ranks ran."""


def stop_signal() -> int | None:
    """The signal that asked the ranks of this command to stop."""
    return _received


def raise_if_stop_requested(max_minutes: float | None = None) -> None:
    """Raise Preempted where a request came that no rank could act on, or the time is over.

    For a command between two pieces of work. The time counts from VCSOUP_BEGAN.
    """
    began = float(os.environ.get("VCSOUP_BEGAN", time.time()))
    if _received or (max_minutes is not None and time.time() > began + 60 * max_minutes):
        raise Preempted(_received)


def not_ignored(signals: Sequence[signal.Signals]) -> list[signal.Signals]:
    """Without a hang-up that `nohup` ignores, or Ctrl-C that a script's background ignores."""
    ignorable = (signal.SIGHUP, signal.SIGINT)
    return [
        each
        for each in signals
        if each not in ignorable or signal.getsignal(each) != signal.SIG_IGN
    ]


def detach_lost_terminal() -> None:
    """Stop writing to a terminal that has hung up, where every write would be an error."""
    for handle in (1, 2):
        try:
            termios.tcgetattr(handle)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, handle)
                os.close(null)


@contextmanager
def forward_stop_signals(forward: Callable[[int], None]) -> Iterator[None]:
    """While this is open, call `forward` with the number of every signal that asks ranks to stop.

    A second SIGINT raises KeyboardInterrupt instead.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        global _received
        if number == signal.SIGHUP:
            detach_lost_terminal()
        if number == signal.SIGINT:
            if _received == signal.SIGINT:
                raise KeyboardInterrupt
            clear_bar()  # rank 0 draws it anew below the line
            with contextlib.suppress(OSError):
                os.write(2, STOPPING)
        _received = number
        forward(number)

    before = {each: signal.signal(each, receive) for each in not_ignored(RANK_SIGNALS)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
