"""One pool of workers: who has which task, and which task is to blame for a lost worker.

A lost worker is replaced, without limit, by a new one on whatever node has its resources. Ray does
not restart actors here: their tasks would wait with them, where now they go to whoever is free, and
the pool would not know which task lost its worker. Where the workers of one slot fail to load again
and again, as on a broken machine, the pool continues without that slot.

With `look_ahead` a worker has one task in progress and prepares the following one, so its loss
makes suspects of both. A suspect runs alone in its worker from then on, and only the loss of a
worker that had nothing else counts against a task.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

import ray

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.launch.overdue import Overdue
from vcsoup_dist.launch.placement import FreeResources
from vcsoup_dist.launch.worker import Place
from vcsoup_dist.launch.worker_errors import is_out_of_memory
from vcsoup_dist.launch.workload import FailedTask, T, Workload

log = logging.getLogger("vcsoup")

COLOURS = re.compile(r"\x1b\[\d+m")
ATTEMPTS = 3  # at one task, or at loading
HOPELESS = 10  # tasks given up, and fewer finished: the pool does not try the others


@dataclass(eq=False)
class Worker(Generic[T]):
    """An actor of the pool, and its tasks."""

    actor: Any
    failures: int
    """Workers before it in this slot, one after the other, that were not loaded."""
    node: str | None = None
    """The machine; None while Ray has no resources for the worker."""
    process: str = ""
    loaded: bool = False
    task: T | None = None
    following: T | None = None
    announced: T | None = None
    """The last task that it was to prepare; another may have taken it since."""
    alone: bool = False
    """Whether the worker has done nothing but `task` since it got that."""


class WorkerPool(Generic[T]):
    """The workers of a workload: `fitting` at the start, and up to `size` as `grow` finds room.

    `advance` takes the progress of every finished task.
    """

    def __init__(
        self, workload: Workload[T], size: int, fitting: int, advance: Callable[[float], None]
    ) -> None:
        self.workload = workload
        self.size = size
        self.advance = advance
        self.workers: list[Worker[T]] = []
        self.pending: dict[Any, tuple[Worker[T], Callable[[Any], None]]] = {}
        """Ray's reference to a result -> whose it will be, and what takes it."""
        self.queue = deque(workload.tasks)
        self.suspects: deque[T] = deque()
        self.attempts: Counter[str] = Counter()
        """Name of a task -> attempts that failed."""
        self.finished = 0
        self.failed: list[FailedTask[T]] = []
        self.error: UserError | None = None
        """In which the pool ends."""
        self.has_loaded = False
        """Whether any worker ever loaded: then a failure to load is its place's."""
        self.overdue = Overdue(workload.patience)
        for _ in range(fitting):
            self._start(failures=0)

    @property
    def unplaced(self) -> int:
        """Workers that Ray has no resources for yet."""
        return sum(worker.node is None for worker in self.workers)

    @property
    def is_at_work(self) -> bool:
        """Whether any worker has a task."""
        return any(worker.task is not None for worker in self.workers)

    @property
    def is_done(self) -> bool:
        """Whether no task is left."""
        return not (self.queue or self.suspects or self.is_at_work)

    @property
    def lacks_workers(self) -> bool:
        """Whether tasks wait for a worker, and the pool may have more."""
        waits = bool(self.queue) and not self._is_last_attempt_due()
        return waits and len(self.workers) < self.size

    def grow(self, free: FreeResources) -> None:
        """Start workers while the cluster has resources: nodes may have joined it."""
        while self.lacks_workers and free.reserve(self.workload.resources):
            self._start(failures=0)

    def stop(self) -> None:
        """Stop all workers."""
        for worker in list(self.workers):
            self._stop(worker)

    def receive(self, reference: Any) -> None:
        """Take one result, and give all workers that are free a task.

        Raises what the workload raises to end everything, and UserError where no worker loads.
        """
        worker, take = self.pending.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._worker_raised(worker, error)
        except ray.exceptions.RayError as error:
            self._worker_lost(worker, error)
        else:
            take(result)
        self._assign()

    def _start(self, failures: int) -> None:
        kind, arguments = self.workload.worker()
        resources = self.workload.resources
        remote = ray.remote(max_restarts=0, max_task_retries=0)(kind).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            resources=dict(resources.custom),
            scheduling_strategy="SPREAD" if resources.spread else "DEFAULT",
        )
        worker: Worker[T] = Worker(remote.remote(*arguments), failures)
        self.workers.append(worker)

        def placed(place: Place) -> None:
            worker.node, worker.process = place.node, place.process
            self.overdue.start(worker, f"{self.workload.name}: loading", place.process)
            self.pending[worker.actor.load.remote()] = worker, loaded

        def loaded(description: str) -> None:
            worker.loaded = True
            self.overdue.drop(worker)
            if not self.has_loaded and description:
                log.info("%s", description)
            self.has_loaded = True

        self.pending[worker.actor.place.remote()] = worker, placed

    def _stop(self, worker: Worker[T]) -> None:
        if worker.following is not None:
            self.queue.appendleft(worker.following)
        self.workers.remove(worker)
        self.overdue.drop(worker)
        self.pending = {ref: each for ref, each in self.pending.items() if each[0] is not worker}
        ray.kill(worker.actor)

    def _worker_raised(self, worker: Worker[T], error: Any) -> None:
        """An exception in a worker, whose process it may have spoilt (CUDA's do)."""
        task = worker.task
        if task is not None or not self.has_loaded:
            self.workload.raise_if_final(task.name if task else self.workload.name, error)
        reason = reason_of(error.cause)
        if task is not None:
            if is_out_of_memory(error.cause):
                reason = f"{reason}; {self.workload.memory_advice}"
            self._blame(task, reason, COLOURS.sub("", str(error)))
        self._replace(worker, reason)

    def _worker_lost(self, worker: Worker[T], error: Exception) -> None:
        task, workload = worker.task, self.workload
        details = " ".join(COLOURS.sub("", str(error)).split())
        if getattr(error, "actor_init_failed", False):  # such as an import that fails
            reason = f"its actor cannot be started: {details[-300:]}"
        else:
            reason = f"its actor died {ATTEMPTS} times"
            if "memory" in details:  # Ray says so where a process was killed
                reason += f"; out of memory? {workload.memory_advice}"
            if task is None:
                reason += f" ({details[:300]})"
        name = task.name if task else workload.name
        log.warning("%s: its actor died, another takes its place", name)
        if task is not None and worker.alone:
            self._blame(task, reason, details)
        else:
            self.suspects += [each for each in (task, worker.following) if each is not None]
            worker.following = None
        self._replace(worker, reason)

    def _blame(self, task: T, reason: str, details: str) -> None:
        self.attempts[task.name] += 1
        if self.attempts[task.name] < ATTEMPTS:
            self.suspects.append(task)
            return
        self.failed.append(FailedTask(task, reason, details))
        self.error = self.workload.gave_up(self.failed)
        if len(self.failed) >= HOPELESS and len(self.failed) > self.finished:
            log.error("%s: too many tasks fail; not trying the others", self.workload.name)
            self.queue.clear()
            self.suspects.clear()
            for worker in self.workers:
                worker.following = None

    def _replace(self, worker: Worker[T], reason: str) -> None:
        """Start a worker in the slot of one that failed, for this reason.

        Where no worker of the slot loads, the others continue without it. Raises UserError where
        none of those loads either.
        """
        failures = 0 if worker.loaded else worker.failures + 1
        self._stop(worker)
        if failures == ATTEMPTS:
            if all(each.failures and not each.loaded for each in self.workers):
                raise UserError(f"{self.workload.name}: cannot be loaded: {reason}")
            log.warning(
                "%s: continuing with %d actors; on another place it cannot be loaded: %s",
                self.workload.name, len(self.workers), reason,
            )  # fmt: skip
            self.size = len(self.workers)
        elif len(self.workers) < min(self.size, self._unfinished()):
            self._start(failures)

    def _unfinished(self) -> int:
        at_work = [each for worker in self.workers for each in (worker.task, worker.following)]
        return len(self.queue) + len(self.suspects) + sum(each is not None for each in at_work)

    def _assign(self) -> None:
        """Give every free worker a task; stop those for which there is none."""
        for worker in [each for each in self.workers if each.task is None]:
            if self._is_last_attempt_due():
                self._assign_last_attempt()
                return
            if not (self.queue or self.suspects or worker.following or self._prepared()):
                self._stop(worker)  # others, of other pools too, may need its resources
            elif worker.loaded:
                self._give_next(worker)

    def _is_last_attempt_due(self) -> bool:
        """Whether a task has, or comes next to, a last attempt that needs the pool for itself."""
        if not self.workload.last_attempt_alone:
            return False
        tasks = [*self.suspects][:1] + [each.task for each in self.workers if each.task is not None]
        return any(self.attempts[task.name] == ATTEMPTS - 1 for task in tasks)

    def _assign_last_attempt(self) -> None:
        """Stop the free workers, all but one where none is at work; that one gets the task."""
        free = sorted((each for each in self.workers if not each.task), key=lambda w: not w.loaded)
        for worker in free if self.is_at_work else free[1:]:
            self._stop(worker)
        if not self.is_at_work and free[0].loaded:
            self._give(free[0], self.suspects.popleft(), None)

    def _give_next(self, worker: Worker[T]) -> None:
        prepared, worker.following = worker.following, None
        if prepared is not None:
            # A suspect comes next, in a worker that prepares nothing else.
            self._give(worker, prepared, None if self.suspects else self._next_to_prepare())
        elif self.suspects:
            # Before the queue: what is wrong with all tasks should show soon.
            self._give(worker, self.suspects.popleft(), None)
        elif self.queue:
            self._give(worker, self.queue.popleft(), self._next_to_prepare())
        else:
            other, task = self._prepared()[0]
            other.following = None
            self._give(worker, task, None)

    def _give(self, worker: Worker[T], task: T, following: T | None) -> None:
        in_vain = worker.announced not in (None, task)
        worker.task, worker.following, worker.announced = task, following, following
        worker.alone = following is None and not in_vain
        self.overdue.start(worker, task.name, worker.process)

        def take(result: Any) -> None:
            worker.task = None
            self.overdue.finish(worker)
            progress = self.workload.finished(task, result)
            self.finished += 1
            self.advance(progress)

        self.pending[worker.actor.run.remote(task, following)] = worker, take

    def _next_to_prepare(self) -> T | None:
        return self.queue.popleft() if self.queue and self.workload.look_ahead else None

    def _prepared(self) -> list[tuple[Worker[T], T]]:
        """Following tasks of workers at work, which another worker may take."""
        return [
            (each, each.following)
            for each in self.workers
            if each.task is not None and each.following is not None
        ]
