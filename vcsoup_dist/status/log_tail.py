"""The ends of the files that a stage's processes write to: how far it is, or how it ended."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.records.history import Execution
from vcsoup_dist.records.step_metrics import METRICS, StepMetrics
from vcsoup_dist.training.job import Job
from vcsoup_dist.training.schedule import count_steps

TAIL = 10  # lines of a log that are shown
TAIL_BYTES = 1 << 16
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f]")  # colours and the like


def end_of_log(
    execution: Execution, names: Iterable[str], root: Path
) -> tuple[Path | None, list[str]]:
    """The file where an execution said last what it did, and its last lines.

    That is its job's log; else what a rank left that it started, of one of the products `names`.
    """
    candidates = [Path(execution.log)] if execution.log else []
    for name in names:
        ranks = (root / "logs" / name).glob("rank-*")
        left = [each for each in ranks if _written(each) >= execution.began]
        for ending in (".traceback", ".log"):
            candidates += sorted(each for each in left if each.suffix == ending)
    for file in candidates:
        if lines := last_lines(file):
            return file, lines
    return None, []


def last_step(root: Path, name: str, since: float) -> str:
    """How far the training of a policy is that was begun at `since`, as `step 12 of 70, loss 0.7`.

    The number of steps is left out where only the ranks know it.
    """
    file = root / "logs" / name / METRICS
    if _written(file) < since:
        return "no step yet"
    for line in reversed(last_lines(file)):
        if metrics := StepMetrics.from_line(line):
            steps = _steps(root / "work" / name / "scratch" / "job.json")
            of = f" of {steps}" if steps else ""
            return f"step {metrics.step + 1}{of}, loss {metrics.values['loss']:.4g}"
    return "no step yet"


def last_lines(file: Path) -> list[str]:
    """The last lines of a file of any size, fit for a terminal; none where it is not there."""
    try:
        with open(file, "rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - TAIL_BYTES))
            end = opened.read()
    except FileNotFoundError:
        return []
    except OSError as error:  # such as another user's
        return [f"cannot be read: {error.strerror}"]
    lines = end.decode(errors="replace").replace("\r", "\n").split("\n")
    clean = [ESCAPES.sub("", line).rstrip() for line in lines]
    return [line for line in clean if line][-TAIL:]


def _written(file: Path) -> float:
    """When a file was written last; never, where it is not there: a new start removes it."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return float("-inf")


def _steps(job_file: Path) -> int | None:
    try:
        job = Job.read(job_file)
    except (FileNotFoundError, UserError):  # just published, or of another version
        return None
    if job.policy is None or not (job.training.steps or job.training.equal_steps):
        return None
    return count_steps(job.training, job.policy.unfiltered_pairs, pairs=0)
