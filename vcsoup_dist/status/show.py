"""What `vcsoup status` prints: stage by stage what is done, runs, waits or failed, and the time.

It looks at the products, at their locks, at the history of executions and at the jobs it is given;
it changes nothing. On a file system whose locks other machines do not see, what runs on another
machine looks killed until it is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcsoup_dist.errors import UserError
from vcsoup_dist.pipeline.graph import to_make
from vcsoup_dist.pipeline.result import show_next
from vcsoup_dist.pipeline.stages import STAGES
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.history import Execution, read_history, time_taken
from vcsoup_dist.slurm_jobs.submissions import (
    LiveJob,
    Submission,
    live_jobs,
    read_submissions,
    was_submitted,
)
from vcsoup_dist.status.log_tail import end_of_log, last_step
from vcsoup_dist.status.lost_jobs import find_lost_jobs
from vcsoup_dist.workspace import Product, Workspace

State = Literal["running", "failed", "pending", "stopped", "changed", "to do", "done", "not needed"]
STATES: tuple[State, ...] = get_args(State)
"""Those of a product; a stage has the first that one of its products has."""

COLOURS = {"running": "cyan", "failed": "red", "pending": "yellow", "done": "green"}
JOBS_SHOWN = 3
FAILURES_SHOWN = 4  # of a stage: tasks of an array as a rule fail alike


@dataclass(frozen=True)
class StageStatus:
    """One row of the table, and what is said below it."""

    stage: str
    states: dict[str, State]
    """Of its products, by their names, in the plan's order."""
    executions: list[Execution]
    """Those that were to make a product as the recipe says now, with just these products."""
    jobs: list[LiveJob]
    """Those in Slurm's queue that make a product that it lacks."""

    @property
    def state(self) -> State:
        """The first of STATES that a product has."""
        return min(self.states.values(), key=STATES.index)

    def in_state(self, state: State) -> list[str]:
        """Names of the products in it."""
        return [name for name, each in self.states.items() if each == state]

    def failures(self) -> list[tuple[Execution, list[str]]]:
        """The executions that its failed products ended with, each with those products."""
        standing = {name: _standing(self.executions, name) for name in self.in_state("failed")}
        ended = [each for each in self.executions if each.was_killed or each.outcome == "failed"]
        found = [(each, [name for name in standing if each in standing[name]]) for each in ended]
        return [(each, names) for each, names in found if names]


def show_status(recipe: Recipe, workspace: Workspace, plan: Sequence[Product]) -> None:
    """The table of stages; then, how far training is, and what failed ones said last."""
    console = Console()
    now = time.time()
    submissions, jobs = _jobs(workspace)
    stages = look(recipe, workspace, plan, jobs, submissions)
    console.print(f"{recipe.name} in {workspace.root}", markup=False, soft_wrap=True)
    table = Table()
    for column in ("stage", "state", "products", "jobs", "time"):
        table.add_column(column, overflow="fold")
    for each in stages:
        colour = COLOURS.get(each.state)
        state = f"[{colour}]{_state_text(each)}[/{colour}]" if colour else _state_text(each)
        table.add_row(
            each.stage, state, _products_text(each), escape(_jobs_text(each)), _time_text(each, now)
        )
    console.print(table)
    if all(each.state in ("done", "not needed") for each in stages):
        show_next(workspace)
    for each in stages:
        for line in _progress(each, workspace):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for each in stages:
        failures = each.failures()
        if len(failures) > FAILURES_SHOWN:
            console.print(f"\n{each.stage}: {len(failures)} failures, the last of them:")
        for execution, names in failures[-FAILURES_SHOWN:]:
            console.print()
            console.print(f"[red]{escape(_headline(execution, names, now))}[/red]", soft_wrap=True)
            for line in _explanation(execution, names, workspace):
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def show_products(recipe: Recipe, workspace: Workspace, plan: Sequence[Product]) -> None:
    """Every product with a mark: made, being made, incomplete where more is asked for now, changed
    where it was made from something else, missing, not kept."""
    console = Console()
    needed = {product.name for product in to_make(plan, workspace, recipe)}
    for product in plan:
        if workspace.is_made(product):
            mark = "made"
        elif workspace.is_being_made(product.name):
            mark = "being made"
        elif workspace.is_begun(product) and product.name in needed:
            mark = "incomplete"
        elif workspace.fingerprint_on_disk(product.name) not in (None, product.fingerprint):
            mark = "changed"
        else:
            mark = "missing" if product.name in needed else "not kept"
        console.print(f"{mark:10}  {product.name}", highlight=False, soft_wrap=True)


def look(
    recipe: Recipe,
    workspace: Workspace,
    plan: Sequence[Product],
    jobs: Sequence[LiveJob],
    submissions: Sequence[Submission] = (),
) -> list[StageStatus]:
    """How each stage of the plan stands now."""
    history = read_history(workspace.root)
    history += find_lost_jobs(workspace.root, recipe.name, plan, submissions, jobs, history)
    needed = {product.name for product in to_make(plan, workspace, recipe)}
    found = []
    for stage in STAGES:
        products = [product for product in plan if product.stage == stage]
        if not products:
            continue
        current = {product.name: product.fingerprint for product in products}
        executions = [
            replace(each, products=dict(asked))
            for each in history
            if each.stage == stage and (asked := each.products.items() & current.items())
        ]
        states = {
            each.name: _state(each, workspace, executions, jobs, each.name in needed)
            for each in products
        }
        lacking = [each for each in products if states[each.name] != "done"]
        own = [job for job in jobs if any(_makes(job, each) for each in lacking)]
        found.append(StageStatus(stage, states, executions, own))
    return found


def _jobs(workspace: Workspace) -> tuple[list[Submission], list[LiveJob]]:
    """What was submitted for the run, and its jobs in the queue; what cannot be known is left out.

    The rest is true without them.
    """
    submissions: list[Submission] = []
    try:
        submissions = read_submissions(workspace.root)
        jobs = live_jobs(workspace.root) if was_submitted(workspace.root) else []
    except UserError as error:
        log.warning("jobs in the queue are not known: %s", error)
        jobs = []
    return submissions, jobs


def _state(
    product: Product,
    workspace: Workspace,
    executions: Sequence[Execution],
    jobs: Sequence[LiveJob],
    needed: bool,
) -> State:
    if workspace.is_made(product):
        return "done"
    own_jobs = [job for job in jobs if _makes(job, product)]
    if (
        workspace.is_being_made(product.name)
        or any(each.running for each in executions if product.name in each.products)
        or not all(job.job.waits for job in own_jobs)
    ):
        return "running"
    if own_jobs:
        return "pending"
    if not needed:
        return "not needed"
    standing = _standing(executions, product.name)
    if any(each.was_killed or each.outcome == "failed" for each in standing):
        return "failed"
    if any(each.outcome == "stopped" for each in standing):
        return "stopped"
    on_disk = workspace.fingerprint_on_disk(product.name)
    return "to do" if on_disk in (None, product.fingerprint) else "changed"


def _makes(job: LiveJob, product: Product) -> bool:
    """Whether a job is to make a product as the recipe says now, or to help with its stage."""
    if not job.makes:
        return job.stage == product.stage
    return job.makes.get(product.name) == product.fingerprint


def _standing(executions: Sequence[Execution], name: str) -> list[Execution]:
    """The executions that were to make a product, less those that a later one took the place of."""
    own = [each for each in executions if name in each.products]
    return [
        each
        for each in own
        if not any(_replaces(later, each) for later in reversed(own) if later is not each)
    ]


def _replaces(later: Execution, earlier: Execution) -> bool:
    """Whether one is a new start of what the other did, and does not run at the same time."""
    if later.job and earlier.job and later.job != earlier.job:
        arrays = [each.job.rpartition("_")[0] for each in (later, earlier) if each.job]
        if arrays[0] and arrays[0] == arrays[1]:  # two tasks that share the product
            return False
    return later.is_after(earlier)


def _state_text(stage: StageStatus) -> str:
    failed = len(stage.in_state("failed"))
    if failed and stage.state != "failed":
        return f"{stage.state}, {failed} failed"
    return stage.state


def _products_text(stage: StageStatus) -> str:
    text = f"{len(stage.in_state('done'))} of {len(stage.states)}"
    unneeded = len(stage.in_state("not needed"))
    return f"{text}, {unneeded} not kept" if unneeded else text


def _jobs_text(stage: StageStatus) -> str:
    """The jobs in the queue, with why they wait; those that run; else those that were."""
    queue = [each.job for each in stage.jobs]
    waiting = {job.id: f"{job.id} ({job.reason})" for job in queue if job.waits}
    running = {job.id: job.id for job in queue if not job.waits}
    running |= {
        each.job or f"{each.host}/{each.pid}": each.job or f"pid {each.pid} on {each.host}"
        for each in stage.executions
        if each.running
    }
    past = {each.job: each.job for each in stage.executions if each.job}
    shown = list((running | waiting or past).values())
    more = len(shown) - JOBS_SHOWN
    return ", ".join(shown[-JOBS_SHOWN:]) + (f" and {more} more" if more > 0 else "")


def _time_text(stage: StageStatus, now: float) -> str:
    if not stage.executions:
        return ""
    text = duration(time_taken(stage.executions, now))
    if any(each.was_killed for each in stage.executions):
        text += " +"  # and what the killed one took
    return f"{text} so far" if any(each.running for each in stage.executions) else text


def duration(seconds: float) -> str:
    """As `7 s`, `12 min 5 s` or `31 h 4 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _progress(stage: StageStatus, workspace: Workspace) -> Iterator[str]:
    """A line for every policy that is being trained."""
    if not STAGES[stage.stage].logs_steps:
        return
    for name in stage.in_state("running"):
        if workspace.is_being_made(name):
            begun = [each.began for each in stage.executions if each.running]
            yield f"{name}: {last_step(workspace.root, name, since=min(begun, default=0.0))}"


def _headline(execution: Execution, names: Sequence[str], now: float) -> str:
    what = "was killed; it began" if execution.was_killed else "failed"
    moment = execution.began if execution.ended is None else execution.ended
    where = f" in job {execution.job}" if execution.job else f", pid {execution.pid}"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    ago = duration(max(0.0, now - moment))
    return f"{execution.stage} {what} {ago} ago on {execution.host}{where}: {names[0]}{more}"


def _explanation(execution: Execution, names: Iterable[str], workspace: Workspace) -> Iterator[str]:
    message = execution.message or ""
    yield from message.splitlines()
    file, lines = end_of_log(execution, names, workspace.root)
    if file is not None and str(file) not in message:  # the message may be its end already
        yield f"the end of {file}:"
        yield from lines
