"""What the log says of work that does not come back, such as a function that hangs."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Hashable
from dataclasses import dataclass

PATIENCE = 300.0
"""Seconds at one piece of work, after which the log speaks of it; then after twice that, and so on.
"""
SLOW = 4.0
"""Times the longest finished piece, which must be over too: large shards take long."""


@dataclass
class _Work:
    what: str
    place: str
    begun: float
    told: float = 0.0
    """Seconds after which the log last spoke of it."""


class Overdue:
    """Pieces of work under way, one per worker at a time."""

    def __init__(self) -> None:
        self._longest = 0.0
        self._under_way: dict[Hashable, _Work] = {}

    def begin(self, worker: Hashable, what: str, place: str) -> None:
        """`worker` begins with a piece; place: from `this_process`, in the worker."""
        self._under_way[worker] = _Work(what, place, time.monotonic())

    def finish(self, worker: Hashable) -> None:
        """The worker has done its piece."""
        work = self._under_way.pop(worker)
        self._longest = max(self._longest, time.monotonic() - work.begun)

    def drop(self, worker: Hashable) -> None:
        """The worker has ended, whether or not it had a piece."""
        self._under_way.pop(worker, None)

    def lines(self) -> list[str]:
        """What the log should say now."""
        found = []
        for work in self._under_way.values():
            seconds = time.monotonic() - work.begun
            if seconds >= max(PATIENCE, SLOW * self._longest, 2 * work.told):
                work.told = seconds
                found.append(f"{work.what}: no result for {_duration(seconds)} from {work.place}")
        return found


def this_process() -> str:
    """Where the caller runs, as a person would look for it."""
    return f"process {os.getpid()} on {platform.node()}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
