"""What a run directory remembers of every execution of a stage: logs/history/*.json.

One file per execution, `<began>-<stage>-<host>-<pid>.json`, so that nodes which share the run
directory never write the same one. It is written when the stage begins, and again when it ends. The
process holds a lock of its file as long as it lives, so a file without an end is that of a stage
that runs, or of one that was killed. On a shared file system this takes locks that all its nodes
see, as the products' own do.

Clocks of hosts may disagree, so beginnings and ends are numbered as well, by the file
logs/history-count.

Only `vcsoup status` reads it; what is made is decided by the products alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Literal

from pydantic import TypeAdapter

from vcsoup_dist.errors import Preempted, UserError, reason_of
from vcsoup_dist.files import write_atomically
from vcsoup_dist.locks import EXCLUSIVE, is_locked_by_process, lock_for_process, wait_for_lock
from vcsoup_dist.progress import log
from vcsoup_dist.workspace import Product

FOLDER = "logs/history"
COUNT = "logs/history-count"
TAIL = 10  # lines of a traceback that are kept


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


@contextlib.contextmanager
def recorded(root: Path, stage: str, products: Sequence[Product]) -> Iterator[None]:
    """Record what happens inside as an execution of `stage` in the run directory `root`.

    Where the record cannot be written this only warns: it must not hide what the stage says.
    """
    execution = replace(_execution(stage, products), began_as=_count(root))
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(execution.began))
    began = f"{moment}.{int(execution.began % 1 * 1e6):06}Z"
    name = f"{began}-{stage}-{execution.host}-{execution.pid}.json"
    file = root / FOLDER / name
    held = _begin(file, execution)

    def end(outcome: Literal["done", "stopped", "failed"], message: str | None = None) -> None:
        ended = replace(
            execution,
            ended=time.time(),
            outcome=outcome,
            message=message,
            ended_as=_count(root),
        )
        try:
            write_atomically(file, _json(ended))
        except OSError as error:
            _warn(file, error)

    try:
        yield
    except (Preempted, KeyboardInterrupt):
        end("stopped")
        raise
    except UserError as error:
        end("failed", str(error))
        raise
    except BaseException:
        end("failed", "\n".join(traceback.format_exc().splitlines()[-TAIL:]))
        raise
    else:
        end("done")
    finally:
        if held:
            held.close()


def read_history(root: Path) -> list[Execution]:
    """All executions of a run directory, the earliest first; what is none is warned of.

    Not for a process that is at a stage: looking at its own file would give up the lock.
    """
    found = []
    for file in sorted((root / FOLDER).glob("*.json")):
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


def _count(root: Path) -> int | None:
    """The next number of a beginning or an end; None where the file cannot be written."""
    try:
        (root / COUNT).parent.mkdir(parents=True, exist_ok=True)
        with open(root / COUNT, "a+") as file:
            wait_for_lock(file, EXCLUSIVE)
            file.seek(0)
            # A byte for each, which a kill or a full disk cannot leave half done.
            number = len(file.read()) + 1
            file.write(".")
            return number
    except OSError:  # the record itself says why
        return None


def _execution(stage: str, products: Sequence[Product]) -> Execution:
    environment = os.environ
    job = environment.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    output = environment.get("VCSOUP_JOB_LOG")
    return Execution(
        stage=stage,
        products={product.name: product.fingerprint for product in products},
        began=time.time(),
        ended=None,
        outcome=None,
        message=None,
        host=socket.gethostname(),
        pid=os.getpid(),
        job=job,
        log=os.path.abspath(output) if output else None,
    )


def _begin(file: Path, execution: Execution) -> IO[str] | None:
    """Write the file and hold its lock; None where that cannot be done.

    No child may hold it: a child may outlive this process.
    """
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    with contextlib.ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(open(aside, "w"))
            lock_for_process(held)  # stays with the file when that is renamed
            held.write(_json(execution))
            held.flush()
            os.replace(aside, file)
        except OSError as error:
            _warn(file, error)
            return None
        stack.pop_all()
        return held


def _read(file: Path) -> Execution:
    with open(file) as opened:
        content = json.load(opened)
        if content["ended"] is None:
            if is_locked_by_process(opened):
                content["running"] = True
            else:  # it may have ended since it was opened
                content = json.loads(file.read_text())
    return EXECUTION.validate_python(content)


def _json(execution: Execution) -> str:
    content = asdict(execution)
    del content["running"]
    return json.dumps(content, indent=1) + "\n"


def _warn(file: Path, error: OSError) -> None:
    log.warning("%s: cannot be written: %s; `vcsoup status` will not know", file, error.strerror)
