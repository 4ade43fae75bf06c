"""The queue of Slurm: putting jobs into it, finding them there, taking them out."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.slurm_output import lines_of, submitted_id, tasks_of
from vcsoup_dist.progress import log

DRAINED = "Requested node configuration is not available"
WAITING = (
    *("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
)
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)


@dataclass(frozen=True)
class QueuedJob:
    """A job, or one task of an array, that has not ended."""

    id: str
    """Such as `12`, or `12_3` for a task."""
    state: str
    """Slurm's, such as PENDING or RUNNING."""
    reason: str
    """Why it waits, in Slurm's word."""

    @property
    def waits(self) -> bool:
        """Whether it has no nodes yet, or has given them back."""
        return self.state in WAITING


def queued_jobs(comment: str) -> list[QueuedJob]:
    """This user's jobs with that comment that have not ended, tasks of arrays one by one.

    What else squeue prints is passed over; raises UserError for a job of ours without an id.
    """
    environment = {name: each for name, each in os.environ.items() if not name.startswith("SQUEUE")}
    environment["SLURM_BITSTR_LEN"] = "0"  # lists of tasks are never cut short
    # Ours last: it may hold any character; and others' comments may even hold line ends.
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}"]
    said = _run([*command, "--format=%i|%T|%r|%k"], environment)
    found: list[QueuedJob] = []
    for line in lines_of(said):
        id, state, reason, *rest = [*line.split("|", 3), "", "", ""][:4]
        if rest != [comment] or state in ENDED:
            continue
        tasks = tasks_of(id)
        if tasks is None:
            raise UserError(f"squeue: `{id}` of the line `{line}` is not a job's id")
        found += [QueuedJob(task, state, reason) for task in tasks]
    return list({each.id: each for each in found}.values())


def check_job(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raise UserError where Slurm would refuse this command of `sbatch`; nothing is submitted.

    What it says of nodes may be true only as long as some are drained: that is a warning.
    """
    try:
        _run([command[0], "--test-only", *command[1:]], environment)
    except UserError as error:
        if DRAINED not in str(error):
            raise
        log.warning("%s (it may wait for nodes that are drained or down)", error)


def submit_job(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a command of `sbatch` with `--parsable`; returns the job's id.

    Raises UserError where sbatch refuses it, or prints none: then there may be a job all the same.
    """
    said = _run(command, environment)
    id = submitted_id(said)
    if id is None:
        shown = " ".join(said.split())[:300]
        raise UserError(f"sbatch: printed no job id, but: {shown or 'nothing'}")
    return id


def cancel_jobs(ids: Sequence[str]) -> None:
    """Take jobs out of the queue, and end those that run."""
    if ids:
        _run(["scancel", "--quiet", *ids])  # also where one has just ended


def environment_for_jobs() -> dict[str, str]:
    """Ours, without what Slurm has set where we are in a job ourselves."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    if "SLURM_CONF" in os.environ:
        inherited["SLURM_CONF"] = os.environ["SLURM_CONF"]
    return inherited


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    try:
        # A path of any bytes comes back as it went.
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="surrogateescape"
        )
    except FileNotFoundError:
        raise UserError(
            f"no `{command[0]}` here: this must run where jobs are submitted, such as a cluster's "
            "login node"
        ) from None
    except OSError as error:
        raise UserError(f"{command[0]}: cannot be run: {error.strerror}") from None
    if done.returncode:
        said = " ".join("\n".join(lines_of(done.stderr)).split())
        said = said.encode(errors="replace").decode() or f"exit code {done.returncode}"
        raise UserError(f"{command[0]}: {said}")
    return done.stdout
