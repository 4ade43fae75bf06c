"""`logs/history/*.json`: what a run directory remembers of every execution of a stage.

One file per execution, `<began>-<stage>-<host>-<pid>.json`. The process holds a lock of its file as
long as it lives, so a file without an end is that of a stage that runs, or of one that was killed.
Clocks of hosts may disagree, so beginnings and ends are numbered as well.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from vcsoup_dist.errors import reason_of
from vcsoup_dist.locks import is_locked_by_process
from vcsoup_dist.progress import log

FOLDER = "logs/history"
OfRanks = Literal["ranks"]


@dataclass(frozen=True)
class Execution:
    """One process at one stage; times are seconds since 1970, of the host's clock."""

    stage: str
    products: Mapping[str, str]
    """Names of the products it was to make -> their fingerprints."""
    began: float
    ended: float | None
    """None while it runs, and for ever where it was killed."""
    outcome: Literal["done", "stopped", "failed"] | None
    """Stopped is on request, by a signal, the clock or a person; None where `ended` is."""
    message: str | None
    """Why it failed: what a person should read, or the end of a traceback."""
    host: str
    pid: int
    job: str | None
    """Slurm's number of the job, as `12`, or `12_3` for a task of an array."""
    log: str | None
    """Where the job's output goes."""
    running: bool = False
    """Whether the process lives; found out when the file is read."""
    began_as: int | None = None
    """Number of its beginning among the beginnings and ends of the run directory; None where it
    could not be counted."""
    ended_as: int | None = None
    """Number of its end."""
    gpus: float | OfRanks | None = None
    """That its actors asked for; `ranks`: one for each rank, where these ran on GPUs, as the log of
    their steps says; None in a record that does not say it."""

    @property
    def was_killed(self) -> bool:
        """Whether its process ended without a word."""
        return self.ended is None and not self.running

    def is_after(self, other: Execution) -> bool:
        """Whether it began when the other had ended, or where that was killed, had begun."""
        if self.began_as is None or other.began_as is None:
            if other.ended is None:
                return self.began > other.began
            return self.began >= other.ended
        return self.began_as > (other.ended_as or other.began_as)


EXECUTION = TypeAdapter(Execution)


def own_name(stage: str) -> str:
    """How the name of a file ends that this process writes at a stage."""
    return f"-{stage}-{socket.gethostname()}-{os.getpid()}.json"


def read_history(root: Path, during: str | None = None) -> list[Execution]:
    """All executions of a run directory, the earliest first; what is none is warned of.

    during: the stage that this process is at. What it recorded of it is left out: looking at its
    own file would give up the lock.
    """
    found = []
    for file in sorted((root / FOLDER).glob("*.json")):
        if during is not None and file.name.endswith(own_name(during)):
            continue
        try:
            found.append(_read(file))
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s: skipped, no record of an execution: %s", file, reason_of(error))
    return sorted(found, key=lambda each: (each.began_as or 0, each.began))


def time_taken(executions: Iterable[Execution], now: float) -> float:
    """Seconds in which at least one of the executions ran; a killed one's are not known, and 0."""
    total, until = 0.0, float("-inf")
    for each in sorted(executions, key=lambda each: each.began):
        start, end = max(each.began, until), now if each.running else each.ended
        if end is not None and end > start:
            total += end - start
            until = end
    return total


def as_json(execution: Execution) -> str:
    """An execution as its file's text."""
    content = asdict(execution)
    del content["running"]
    return json.dumps(content, indent=1) + "\n"


def _read(file: Path) -> Execution:
    with open(file) as opened:
        content = json.load(opened)
        if content["ended"] is None:
            if is_locked_by_process(opened):
                content["running"] = True
            else:  # it may have ended since it was opened
                content = json.loads(file.read_text())
    return EXECUTION.validate_python(content)
