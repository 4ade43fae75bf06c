"""Log lines about work that does not return, such as a function that hangs."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass

SLOW = 4.0
"""Times the longest finished piece of work that a piece may take before it is overdue."""


@dataclass
class _Work:
    what: str
    process: str
    started: float
    reported: float = 0.0
    """Seconds after the start at which the log last named it."""


class Overdue:
    """Work in progress, one piece per worker at a time.

    A piece is overdue after `patience` seconds and `SLOW` times the longest finished piece; then
    the log names it, and again each time that its duration has doubled.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._longest = 0.0
        self._in_progress: dict[Hashable, _Work] = {}

    def start(self, worker: Hashable, what: str, process: str) -> None:
        """`worker` starts a piece, in that process."""
        self._in_progress[worker] = _Work(what, process, time.monotonic())

    def finish(self, worker: Hashable) -> None:
        """The worker has done its piece."""
        work = self._in_progress.pop(worker)
        self._longest = max(self._longest, time.monotonic() - work.started)

    def drop(self, worker: Hashable) -> None:
        """The worker has ended, or its piece does not count."""
        self._in_progress.pop(worker, None)

    def lines(self) -> list[str]:
        """What the log should say now."""
        lines = []
        for work in self._in_progress.values():
            seconds = time.monotonic() - work.started
            if seconds >= max(self.patience, SLOW * self._longest, 2 * work.reported):
                work.reported = seconds
                lines.append(f"{work.what}: no result for {_duration(seconds)} from {work.process}")
        return lines


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
