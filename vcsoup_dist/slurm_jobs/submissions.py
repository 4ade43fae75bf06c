"""What was submitted for a run directory, and which of it Slurm still has.

jobs.json    one record per submission: its id, its stage, what it makes, what it waits for
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.files import write_atomically
from vcsoup_dist.launch.slurm_queue import QueuedJob, queued_jobs


@dataclass(frozen=True)
class Submission:
    """One `sbatch`: a job, or an array."""

    id: str
    stage: str
    tasks: Sequence[Mapping[str, str]]
    """Fingerprints of the products that it makes, by name; of an array, for every task. Empty for
    jobs that only prepare what another publishes."""
    after: Sequence[str]
    """Ids of the jobs that it waits for."""
    submitted: str
    is_array: bool = False


SUBMISSIONS = TypeAdapter(list[Submission])


@dataclass(frozen=True)
class LiveJob:
    """A job of the run, or a task of an array, that is in Slurm's queue."""

    job: QueuedJob
    stage: str
    makes: Mapping[str, str] = field(default_factory=dict)
    """Product -> fingerprint."""
    after: Sequence[str] = ()

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for a job that has failed, or for a person since its nodes failed."""
        return self.job.waits and self.job.reason in (
            "DependencyNeverSatisfied",
            "JobHoldMaxRequeue",  # Slurm's MaxBatchRequeue, 5 by default
            # A node came back after its link was cut, with what it remembered of the job.
            "launch failed requeued held",
        )


def mark_of(root: Path) -> str:
    """The comment by which the jobs of a run directory are known, by whatever path it is named."""
    return f"vcsoup {root.resolve()}"


def read_submissions(root: Path) -> list[Submission]:
    """All that was ever submitted for a run directory, in that order."""
    file = root / "jobs.json"
    try:
        return SUBMISSIONS.validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: unreadable ({reason_of(error)}); remove it") from error


def note_submissions(root: Path, *submissions: Submission) -> None:
    """Remember what was submitted; with nothing, that something will be."""
    records = [asdict(each) for each in [*read_submissions(root), *submissions]]
    write_atomically(root / "jobs.json", json.dumps(records, indent=1) + "\n")


def was_submitted(root: Path) -> bool:
    """Whether `vcsoup submit` ever submitted something for a run directory."""
    return (root / "jobs.json").exists()


def live_jobs(root: Path) -> list[LiveJob]:
    """The jobs of a run directory that Slurm has."""
    known = {each.id: each for each in read_submissions(root)}
    return [_joined(job, known) for job in queued_jobs(mark_of(root))]


def _joined(job: QueuedJob, known: Mapping[str, Submission]) -> LiveJob:
    base, _, task = job.id.partition("_")
    if base not in known:  # `vcsoup submit` was killed before it could say what this one is
        return LiveJob(job, "unknown")
    of = known[base]
    number = int(task or 0)
    makes = of.tasks[number] if number < len(of.tasks) else {}
    return LiveJob(job, of.stage, makes, of.after)
