"""Pools of workers, one per workload, side by side as far as the cluster has resources.

Why raw actors: Ray Data's actors starve its own read tasks on a small machine, and
`ray.util.ActorPool` loses the work of an actor that dies.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import ray

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.placement import FreeResources, check_placeable
from vcsoup_dist.launch.worker_pool import WorkerPool
from vcsoup_dist.launch.workload import Workload

log = logging.getLogger("vcsoup")

QUIET = 60.0  # seconds without any result, after which the log says who waits for what


def run_pools(
    workloads: Sequence[Workload[Any]], advance: Callable[[float], None]
) -> Generator[Workload[Any], None, None]:
    """Do all tasks on the connected Ray cluster; yields each workload whose tasks are all done.

    Pools start in the given order. `advance` takes the progress of every finished task. Raises at
    once what a workload raises, and in the end UserError where tasks were given up. All workers are
    stopped when this ends or is closed.
    """
    for workload in workloads:
        check_placeable(workload.section, workload.resources)
    waiting = deque(workloads)
    running: list[WorkerPool[Any]] = []
    errors: list[str] = []
    try:
        while waiting or running:
            _start_pools_that_fit(waiting, running, advance)
            _grow(running)
            for reference, pool in _results(running):
                if reference in pool.pending:  # its worker may have been stopped meanwhile
                    pool.receive(reference)
            for pool in [each for each in running if each.is_done]:
                running.remove(pool)
                pool.stop()
                if pool.error is None:
                    yield pool.workload
                else:
                    errors.append(str(pool.error))
    finally:
        for pool in running:
            pool.stop()
    if errors:
        raise UserError("; ".join(errors))


def _start_pools_that_fit(
    waiting: deque[Workload[Any]], running: list[WorkerPool[Any]], advance: Callable[[float], None]
) -> None:
    """Start pools whose workers all fit beside the others; the only one with what fits."""
    while waiting:
        workload = waiting[0]
        free = _free_with(running)
        wanted = min(workload.workers, len(workload.tasks))
        fitting = sum(free.reserve(workload.resources) for _ in range(wanted))
        if fitting < wanted and running:
            return
        if fitting < wanted:
            log.warning(
                "%s: the Ray cluster has resources for %d of %d actors",
                workload.name, fitting, wanted,
            )  # fmt: skip
        running.append(WorkerPool(waiting.popleft(), wanted, max(fitting, 1), advance))


def _grow(running: Sequence[WorkerPool[Any]]) -> None:
    """Let pools that started with too few workers use nodes that joined since."""
    if any(pool.lacks_workers for pool in running):
        free = _free_with(running)
        for pool in running:
            pool.grow(free)


def _free_with(running: Sequence[WorkerPool[Any]]) -> FreeResources:
    free = FreeResources()
    for pool in running:
        for worker in pool.workers:
            free.reserve(pool.workload.resources, worker.node)
    return free


def _results(running: Sequence[WorkerPool[Any]]) -> list[tuple[Any, WorkerPool[Any]]]:
    """Wait for results, not for ever; all that are there."""
    pools = {reference: pool for pool in running for reference in pool.pending}
    done, _ = ray.wait(list(pools), num_returns=1, timeout=QUIET)
    for pool in running:
        for line in pool.overdue.lines():
            log.warning("%s; %s", line, pool.workload.hang_advice)
        if not done and pool.unplaced and not pool.is_at_work:
            log.warning(
                "%s: %d actors wait for resources on the Ray cluster",
                pool.workload.name, pool.unplaced,
            )  # fmt: skip
    if done:
        done, _ = ray.wait(list(pools), num_returns=len(pools), timeout=0)
    return [(reference, pools[reference]) for reference in done]
