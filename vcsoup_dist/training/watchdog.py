"""A watchdog that ends a hanging rank and leaves its stack in the log folder."""

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

    The interpreter does it in a C thread, which also works while every Python thread waits in a
    collective. All ranks hang where one does, so all dump their stacks.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._file: IO[Any] = open(  # noqa: SIM115 - lives as long as the process
            stack_file(Path(os.environ["VCSOUP_LOGS"]), os.environ["RANK"]), "w"
        )

    def alive(self) -> None:
        """Restart the count."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def rest(self) -> None:
        """Stop the count until the next `alive`."""
        faulthandler.cancel_dump_traceback_later()
