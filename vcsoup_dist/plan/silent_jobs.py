"""Jobs that ended before `vcsoup` could say anything: no such command there, no Ray, no node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vcsoup_dist.plan.history import Execution
from vcsoup_dist.plan.submissions import LiveJob, read_submissions
from vcsoup_dist.workspace import Product


def silent_jobs(
    root: Path, plan: Sequence[Product], live: Sequence[LiveJob], executions: Sequence[Execution]
) -> Iterator[Execution]:
    """Each as an execution that failed, one for every stage that it was to do.

    A job that never began, having left no log, is none.
    """
    stages = {product.name: product.stage for product in plan}
    heard = {each.job for each in executions} | {each.job.id for each in live}
    for submission in read_submissions(root):
        for number, makes in enumerate(submission.tasks):
            job = f"{submission.id}_{number}" if submission.is_array else submission.id
            log = _log_of(root / "logs" / "jobs", job)
            if job in heard or log is None:
                continue
            ended = log.stat().st_mtime
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
                    host=log.name.rsplit("-", 2)[1] if log.suffix == ".log" else "its node",
                    pid=0,
                    job=job,
                    log=str(log),
                )


def _log_of(folder: Path, job: str) -> Path | None:
    """The last log of a job, or what Slurm said of it, where it left one of them."""
    logs = [*folder.glob(f"*-{job}-*.log")]
    logs = [each for each in logs if f"-{job}-ray-" not in each.name]
    found = [each for each in logs or folder.glob(f"*-{job}.out") if each.stat().st_size]
    return max(found, key=lambda each: each.stat().st_mtime, default=None)
