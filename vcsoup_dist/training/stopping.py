"""Stopping on request: all ranks save at the same step boundary and exit with `EXIT_PREEMPTED`.

A handler only sets a flag. At every step boundary the flags of all ranks are joined, so a signal to
any one rank is enough, and no rank waits for others that have left: a ZeRO-3 save is collective.
SIGUSR2, not SIGUSR1, which NCCL and Slurm's own tools use; SIGTERM because `scancel` sends it;
SIGINT and SIGHUP because a terminal sends them to the ranks as well as to their launcher.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from vcsoup_dist.launch.stop_signals import RANK_SIGNALS, detach_lost_terminal, not_ignored
from vcsoup_dist.training.distributed import any_rank


class StopRequest:
    """Whether this process was asked to stop since this object was made.

    `max_minutes` count from VCSOUP_BEGAN in the environment, in seconds of the epoch: where a
    launcher has set it, the command's start.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self._signal: int | None = None
        began = float(os.environ.get("VCSOUP_BEGAN", time.time()))
        self._deadline = None if max_minutes is None else began + 60 * max_minutes
        for each in not_ignored(RANK_SIGNALS):
            signal.signal(each, self._note)
        # The launcher blocked them; one that came meanwhile is noted now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RANK_SIGNALS)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if number == signal.SIGHUP:
            detach_lost_terminal()

    def on_any_rank(self, worked: bool) -> bool:
        """Whether any rank was asked to stop or has used up its time. Called by all together.

        worked: whether there is work to save. Only then does the clock count: a run that is
        requeued again and again must make progress.
        """
        late = self._deadline is not None and worked and time.time() > self._deadline
        return any_rank(self._signal is not None or late)
