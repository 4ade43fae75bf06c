"""A training rank of which rank 1 hangs in its third step: `python -m hanging_rank JOB`."""

from __future__ import annotations

import os
import signal

from deepspeed import DeepSpeedEngine

from vcsoup_dist.training import rank


def hang(engine, *arguments, backward=DeepSpeedEngine.backward, **options):
    """DeepSpeed's backward, in which the process is stopped."""
    if engine.global_steps == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    return backward(engine, *arguments, **options)


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        DeepSpeedEngine.backward = hang
    rank.main()
