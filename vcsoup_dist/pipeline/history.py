"""What a run directory remembers of every execution of a stage: logs/history/*.json.

One file per execution, `<began>-<stage>-<host>-<pid>.json`, so that nodes which share the run
directory never write the same one. It is written when the stage begins, and again when it ends. The
process holds a lock of its file as long as it lives, so a file without an end is that of a stage
that runs, or of one that was killed. On a shared file system this takes locks that all its nodes
see, as the products' own do.

Clocks of hosts may disagree, so beginnings and ends are numbered as well, by the file
logs/history-count.

`vcsoup status` and the report read it; what is made is decided by the products alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal

from vcsoup_dist.errors import Preempted, UserError
from vcsoup_dist.files import write_atomically
from vcsoup_dist.locks import exclusive, lock_for_process, unlock_for_process
from vcsoup_dist.progress import log
from vcsoup_dist.records.history import FOLDER, Execution, OfRanks, as_json, own_name
from vcsoup_dist.workspace import Product

COUNT = "logs/history-count"
TAIL = 10  # lines of a traceback that are kept


@contextlib.contextmanager
def recorded(
    root: Path, stage: str, products: Sequence[Product], gpus: float | OfRanks | None = None
) -> Iterator[None]:
    """Record what happens inside as an execution of `stage` in the run directory `root`.

    gpus: see `Execution`.

    Where the record cannot be written this only warns: it must not hide what the stage says.
    """
    execution = replace(_execution(stage, products), began_as=_count(root), gpus=gpus)
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(execution.began))
    began = f"{moment}.{int(execution.began % 1 * 1e6):06}Z"
    file = root / FOLDER / f"{began}{own_name(stage)}"
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
            write_atomically(file, as_json(ended))
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
            with contextlib.suppress(OSError):  # of a server that is gone
                held.close()
            unlock_for_process(file)


def _count(root: Path) -> int | None:
    """The next number of a beginning or an end; None where the file cannot be written."""
    try:
        (root / COUNT).parent.mkdir(parents=True, exist_ok=True)
        with exclusive(root / COUNT) as lock:
            lock.file.seek(0)
            # A byte for each, which a kill or a full disk cannot leave half done.
            number = len(lock.file.read()) + 1
            lock.file.write(".")
            lock.file.flush()
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
            lock_for_process(held, file)  # stays with the file when that is renamed
            stack.callback(unlock_for_process, file)
            held.write(as_json(execution))
            held.flush()
            os.replace(aside, file)
        except OSError as error:
            _warn(file, error)
            return None
        stack.pop_all()
        return held


def _warn(file: Path, error: OSError) -> None:
    log.warning("%s: cannot be written: %s; `vcsoup status` will not know", file, error.strerror)
