"""Ending a rank that hangs: its stack into `rank-<r>.stack` in the log folder, then exit."""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path
from typing import IO, Any


def stack_file(logs: Path, rank: int | str) -> Path:
    """Where a rank's stack is dumped; empty while nothing hangs."""
    return logs / f"rank-{rank}.stack"


class Watchdog:
    """Ends the process when it has not called `alive` for so many minutes.

    A thread of the interpreter's own in C does it, so that it also works where every thread of
    Python waits in a collective. All ranks hang where one does, so all stacks are dumped.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._file: IO[Any] = open(  # noqa: SIM115 - lives as long as the process
            stack_file(Path(os.environ["VCSOUP_LOGS"]), os.environ["RANK"]), "w"
        )

    def alive(self) -> None:
        """Begin to count anew."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def rest(self) -> None:
        """Count no more until the next `alive`."""
        faulthandler.cancel_dump_traceback_later()
