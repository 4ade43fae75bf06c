"""Jobs that ended before `vcsoup` could say anything: no such command there, no Ray, no node."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.records.history import Execution
from vcsoup_dist.slurm_jobs.submissions import LiveJob, Submission
from vcsoup_dist.workspace import Product


@dataclass(frozen=True)
class _Log:
    """What a job said in one of its starts, or what Slurm said of it."""

    file: Path
    node: str | None
    """None for Slurm's."""


def find_lost_jobs(
    root: Path,
    name: str,
    plan: Sequence[Product],
    submissions: Sequence[Submission],
    live: Sequence[LiveJob],
    executions: Sequence[Execution],
) -> Iterator[Execution]:
    """Each as an execution that failed, one for every stage that it was to do.

    name: the recipe's. A job that never began, having left no log, is none.
    """
    stages = {product.name: product.stage for product in plan}
    heard = {each.job for each in executions} | {each.job.id for each in live}
    logs = _logs(root / "logs" / "jobs", name)
    for place, submission in enumerate(submissions):
        for job, makes in _jobs(submission, submissions[place + 1 :], logs):
            if job in heard or (log := _last(logs.get(f"{submission.stage}-{job}", []))) is None:
                continue
            ended = log.file.stat().st_mtime
            for stage in sorted({stages[name] for name in makes if name in stages}):
                yield Execution(
                    stage=stage,
                    products={
                        name: made for name, made in makes.items() if stages.get(name) == stage
                    },
                    began=ended,
                    ended=ended,
                    outcome="failed",
                    message="it ended before `vcsoup` began",
                    host=log.node or "its node",
                    pid=0,
                    job=job,
                    log=str(log.file),
                )


def _jobs(
    submission: Submission, later: Sequence[Submission], logs: Mapping[str, object]
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The jobs of a submission, and the products that each makes or helps to make."""
    if submission.tasks:
        for number, makes in enumerate(submission.tasks):
            yield f"{submission.id}_{number}" if submission.is_array else submission.id, makes
        return
    # Tasks that prepare what the next job of their stage publishes; their number is not recorded.
    of_stage = [each for each in later if each.stage == submission.stage]
    makes = {
        name: made for task in of_stage[:1] for each in task.tasks for name, made in each.items()
    }
    for key in logs:
        stage, _, job = key.partition("-")
        if stage == submission.stage and job.startswith(f"{submission.id}_"):
            yield job, makes


def _logs(folder: Path, name: str) -> dict[str, list[_Log]]:
    """`STAGE-JOB[_TASK]` -> its logs that are not Ray's.

    The files are `NAME-STAGE-JOB[_TASK]-NODE-RESTART.log`, Ray's with `ray-` before the node, and
    Slurm's `NAME-STAGE-JOB[_TASK].out`; NAME and NODE may hold dashes and numbers too.
    """
    pattern = re.compile(
        rf"{re.escape(name)}-([a-z]+(?:_\d+)?-\d+(?:_\d+)?)(?:-(?!ray-)(.+)-\d+\.log|\.out)"
    )
    found = defaultdict(list)
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := pattern.fullmatch(file.name):
            found[match[1]].append(_Log(file, node=match[2]))
    return dict(found)


def _last(logs: Sequence[_Log]) -> _Log | None:
    """The last that says something; Slurm's only where the job left none."""
    own = [each for each in logs if each.node is not None]
    found = [each for each in own or logs if each.file.stat().st_size]
    return max(found, key=lambda each: each.file.stat().st_mtime, default=None)
