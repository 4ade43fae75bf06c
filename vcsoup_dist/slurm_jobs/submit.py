"""`vcsoup submit`: what is due as a chain of Slurm jobs."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.slurm_queue import (
    cancel_jobs,
    check_job,
    environment_for_jobs,
    queued_jobs,
    submit_job,
)
from vcsoup_dist.locks import exclusive
from vcsoup_dist.pipeline.graph import to_make
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.slurm_jobs.job_warnings import job_warnings
from vcsoup_dist.slurm_jobs.jobs import StageJob, jobs_for, script_of
from vcsoup_dist.slurm_jobs.site import load_site
from vcsoup_dist.slurm_jobs.submissions import (
    LiveJob,
    Submission,
    live_jobs,
    mark_of,
    note_submissions,
)
from vcsoup_dist.workspace import Product, Workspace

SETTLING = 60.0  # seconds
FIND_ID = "job_id() { grep -xE '[1-9][0-9]{0,9}(;[A-Za-z0-9._-]+)?' | tail -n 1 | cut -d';' -f1; }"


@dataclass(frozen=True)
class Step:
    """A job that is to be submitted, or those in the queue that make the same; or some of both."""

    job: StageJob
    """With the products that no job in the queue makes; none where nothing is to be submitted."""
    kept: tuple[str, ...]
    """Ids of the jobs in the queue that make the rest."""


def submit_jobs(
    recipe_file: Path, recipe: Recipe, workspace: Workspace, plan: Sequence[Product]
) -> list[str]:
    """Submit jobs for all that is due and that no job in the queue makes; returns a line of each.

    Jobs that wait for one that failed, or for one that is submitted anew, are replaced. Every job
    is shown to Slurm before the first is submitted, so that a mistake leaves the queue as it was;
    where the chain breaks all the same, its jobs are cancelled. Raises UserError where Slurm
    refuses one, or where one runs that would be in the way.
    """
    with _alone(workspace):
        live = settled_jobs(workspace.root)
        steps = next_steps(recipe, workspace, plan, live)
        _try_steps(steps, recipe_file, recipe, workspace)
        environment = _environment(workspace)
        note_submissions(workspace.root)
        _logs(workspace).mkdir(parents=True, exist_ok=True)
        cancel_jobs(_replaced(steps, live))
        there = {_base(each.job.id) for each in live}
        with _cancelled_if_broken(workspace, there):
            return _submit_chain(steps, recipe_file, recipe, workspace, environment)


def _submit_chain(
    steps: Sequence[Step],
    recipe_file: Path,
    recipe: Recipe,
    workspace: Workspace,
    environment: Mapping[str, str],
) -> list[str]:
    ids: dict[str, list[str]] = {}
    lines = []
    for step in steps:
        after = [id for stage in step.job.after for id in ids[stage]]
        own: list[str] = []
        for part in _parts(step.job, recipe_file, recipe):
            waits_for = [*after, *own]
            command = _sbatch(part, step.job, recipe, workspace, waits_for)
            own.append(submit_job(command, environment))
            now = datetime.now().isoformat(timespec="seconds")
            note_submissions(
                workspace.root,
                Submission(own[-1], step.job.name, part.tasks, waits_for, now, bool(part.array)),
            )
        ids[step.job.name] = [*step.kept, *own]
        lines.append(_line(step, ids[step.job.name], after))
    return lines


@contextmanager
def _cancelled_if_broken(workspace: Workspace, there: AbstractSet[str]) -> Iterator[None]:
    """Cancel the run's jobs but those that were there before, where the block does not end well.

    They are found by their comment: that sbatch was ended, or printed no id, does not say that
    there is no job.
    """
    try:
        yield
    except BaseException as error:
        try:
            queued = queued_jobs(mark_of(workspace.root))
            new = sorted({base for each in queued if (base := _base(each.id)) not in there})
            cancel_jobs(new)
        except UserError as second:
            log.warning("jobs of this chain may be left, `vcsoup cancel` ends them (%s)", second)
            raise error from None
        if new:
            log.warning("cancelled what was submitted before that: job %s", ", ".join(new))
        raise


def try_jobs(
    recipe_file: Path, recipe: Recipe, workspace: Workspace, plan: Sequence[Product]
) -> None:
    """Show Slurm the jobs of a run directory that is not there yet; writes and submits nothing.

    Raises UserError where Slurm refuses one, or where there is no Slurm.
    """
    _try_steps(next_steps(recipe, workspace, plan, []), recipe_file, recipe, workspace)


def _try_steps(
    steps: Sequence[Step], recipe_file: Path, recipe: Recipe, workspace: Workspace
) -> None:
    environment = _environment(workspace)
    for step in steps:
        for part in _parts(step.job, recipe_file, recipe):
            check_job(_sbatch(part, step.job, recipe, workspace, []), environment)


def as_script(
    recipe_file: Path,
    recipe: Recipe,
    workspace: Workspace,
    plan: Sequence[Product],
    live: Sequence[LiveJob],
) -> list[str]:
    """The lines of a shell script that does what `submit` would do now, but for its record."""
    steps = next_steps(recipe, workspace, plan, live)
    if not steps:
        return []
    ours = environment_for_jobs()
    lines = ["set -euo pipefail", FIND_ID]
    lines += [
        f"export {name}={shlex.quote(value)}"
        for name, value in _environment(workspace).items()
        if ours.get(name) != value
    ]
    if any(step.job.products for step in steps):  # Slurm does not make it
        lines.append(f"mkdir -p {shlex.quote(str(_logs(workspace)))}")
    if replaced := _replaced(steps, live):
        lines.append(f"scancel {' '.join(replaced)}")
    ids: dict[str, list[str]] = {}
    for step in steps:
        own: list[str] = []
        for number, part in enumerate(_parts(step.job, recipe_file, recipe)):
            after = [id for stage in step.job.after for id in ids[stage]]
            command = _sbatch(part, step.job, recipe, workspace, [*after, *own])
            # Only the dependency holds variables, those of this script.
            words = [
                f'"{word}"' if word.startswith("--dependency=") else shlex.quote(word)
                for word in command
            ]
            variable = step.job.name + (f"_{number}" if number else "")
            lines.append(f"{variable}=$({' '.join(words)} | job_id)")
            own.append(f"${variable}")
        ids[step.job.name] = [*step.kept, *own]
    return lines


def settled_jobs(root: Path) -> list[LiveJob]:
    """The run's jobs, once Slurm knows what becomes of them.

    One that is ending may have failed, and one whose predecessors have all ended may start now or
    never.
    """
    deadline = time.monotonic() + SETTLING
    while True:
        live = live_jobs(root)
        there = {_base(each.job.id) for each in live}
        unsettled = any(
            each.job.state == "COMPLETING"
            or (
                each.job.reason == "Dependency"
                and each.after
                and not any(_base(id) in there for id in each.after)
            )
            for each in live
        )
        if not unsettled or time.monotonic() > deadline:
            return live
        time.sleep(1)


def _base(id: str) -> str:
    """The number of an array, of one of its tasks."""
    return id.partition("_")[0]


def next_steps(
    recipe: Recipe, workspace: Workspace, plan: Sequence[Product], live: Sequence[LiveJob]
) -> list[Step]:
    """What to do about every job that is due, in order."""
    due = to_make(plan, workspace, recipe)
    site = load_site()
    jobs = jobs_for(recipe, site, due)
    for warning in job_warnings(recipe, site) if jobs else ():
        log.warning("warning: %s", warning)
    current = {product.name: product.fingerprint for product in plan}
    for each in live:
        if not each.job.waits and each.stage == "unknown":
            raise _in_the_way(
                each, "was not submitted by `vcsoup submit`, or by one that was killed"
            )
        if not each.job.waits and not _is_current(each, current):
            raise _in_the_way(each, "makes something that the recipe does not ask for any more")
    steps: dict[str, Step] = {}
    for job in jobs:
        before = [steps[stage] for stage in job.after]
        needed = {_base(id) for step in before for id in step.kept}
        renewed = any(step.job.products for step in before)

        def is_well(each: LiveJob, needed: set[str] = needed, renewed: bool = renewed) -> bool:
            if not each.job.waits:
                return True
            waits_for = {_base(id) for id in each.after}
            return (
                _is_current(each, current)
                and not (each.is_stuck or renewed)
                and needed <= waits_for
            )

        of_stage = [each for each in live if each.stage == job.name]
        well = [each for each in of_stage if is_well(each)]
        made = {name for each in well for name in each.makes}
        rest = tuple(product for product in job.products if product.name not in made)
        if rest and not job.job.is_array:
            for each in well:
                if not each.job.waits:
                    raise _in_the_way(each, f"is part of {job.name}, which it cannot finish")
            well, rest = [], job.products
        steps[job.name] = Step(replace(job, products=rest), tuple(each.job.id for each in well))
    return list(steps.values())


def _is_current(live: LiveJob, current: Mapping[str, str]) -> bool:
    return all(current.get(name) == made for name, made in live.makes.items())


def _in_the_way(live: LiveJob, why: str) -> UserError:
    return UserError(
        f"job {live.job.id} ({live.stage}) is {live.job.state.lower()} and {why}; wait for its "
        "end, or `vcsoup cancel`, and submit again"
    )


def cancel_jobs_of(workspace: Workspace) -> list[str]:
    """Take all jobs of a run directory out of the queue; returns their ids."""
    ids = [each.job.id for each in live_jobs(workspace.root)]
    cancel_jobs(ids)
    return ids


@dataclass(frozen=True)
class _Part:
    """One `sbatch` of a job."""

    script: Sequence[str]
    tasks: Sequence[Mapping[str, str]]
    """Of the submission's record."""
    array: str = ""
    """Which tasks, where it is one."""


def _parts(job: StageJob, recipe_file: Path, recipe: Recipe) -> list[_Part]:
    """One, or two for a merge by several ranks, whose soups another job publishes."""
    if not job.products:
        return []
    script = script_of(job, recipe_file)
    makes = {product.name: product.fingerprint for product in job.products}
    if job.job.is_array:
        at_once = f"%{recipe.launch.policies_at_once}" if recipe.launch.policies_at_once else ""
        tasks = [{name: made} for name, made in makes.items()]
        return [_Part(script, tasks, f"0-{len(makes) - 1}{at_once}")]
    if job.ranks > 1:
        finalise = [*script, "--finalise", "--world-size", str(job.ranks)]
        return [_Part(script, [], f"0-{job.ranks - 1}"), _Part(finalise, [makes])]
    return [_Part(script, [makes])]


def _sbatch(
    part: _Part, job: StageJob, recipe: Recipe, workspace: Workspace, after: Sequence[str]
) -> list[str]:
    folder = str(_logs(workspace)).replace("%", "%%")
    options: dict[str, object] = {
        "job-name": f"{recipe.name}-{job.name}",
        "comment": mark_of(workspace.root),
        "output": f"{folder}/" + ("%x-%A_%a.out" if part.array else "%x-%j.out"),
        "export": "ALL",  # whatever SBATCH_EXPORT says
        "kill-on-invalid-dep": "yes",
        "dependency": "afterok:" + ":".join(after) if after else False,
        "array": part.array or False,
        **job.options,
    }
    words = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in options.items()
        if value is not False
    ]
    return ["sbatch", "--parsable", *words, *part.script]


def _replaced(steps: Sequence[Step], live: Sequence[LiveJob]) -> list[str]:
    """Jobs of the run that wait for what will not come, or that nobody waits for any more."""
    kept = {id for step in steps for id in step.kept}
    return [each.job.id for each in live if each.job.waits and each.job.id not in kept]


def _environment(workspace: Workspace) -> dict[str, str]:
    """Of the jobs: ours, what the site file adds, and where the run directory and its logs are."""
    return {
        # As `vcsoup` was found here it is found there.
        "VCSOUP_SETUP": f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        **load_site().environment,
        **environment_for_jobs(),
        "VCSOUP_RUN_DIR": str(workspace.root),
        "VCSOUP_LOG_DIR": str(_logs(workspace)),
    }


def _logs(workspace: Workspace) -> Path:
    return workspace.root / "logs" / "jobs"


@contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    """One `vcsoup submit` of a run directory at a time; the others wait."""
    locks = workspace.root / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with exclusive(locks / "submit"):
        yield


def _line(step: Step, own: Sequence[str], after: Sequence[str]) -> str:
    parts = [f"{step.job.name:11}", *own]
    if step.job.job.is_array and len(step.job.products) > 1:
        parts.append(f"({len(step.job.products)} tasks)")
    if not step.job.products:
        parts.append("in the queue already")
    if after:
        parts.append(f"after {', '.join(after)}")
    return " ".join(parts)
