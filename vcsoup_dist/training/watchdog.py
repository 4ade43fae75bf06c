"""A watchdog that ends a hanging rank and leaves its stack in the log folder."""

from __future__ import annotations

import faulthandler
from typing import IO, Any

from vcsoup_dist.launch.rank_logs import rank_log


class Watchdog:
    """Ends the process when it has not called `alive` for so many minutes.

    The interpreter does it in a C thread, which also works while every Python thread waits in a
    collective. All ranks hang where one does, so all dump their stacks.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        # Empty while nothing hangs.
        self._file: IO[Any] = open(rank_log("stack"), "w")  # noqa: SIM115 - until the process ends

    def alive(self) -> None:
        """Restart the count."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def rest(self) -> None:
        """Stop the count until the next `alive`."""
        faulthandler.cancel_dump_traceback_later()
