"""A function of many items, here one after the other or as Ray tasks; the results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vcsoup_dist.errors import UserError
from vcsoup_dist.locks import shared_by_process
from vcsoup_dist.processes import die_with_parent
from vcsoup_dist.recipe import Launch

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT = 2  # items per CPU: one at work, one waiting


class Run(Protocol):
    """Yields the results of a function in the order of its items, which it draws as needed.

    The function is one of a module, so that other processes can import it, or a partial of one.
    `workers_lock` is a product's that it writes to, if any. The first error ends the map.
    """

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        workers_lock: Path | None = None,
    ) -> Iterator[Result]: ...


def run_here(
    function: Callable[[Item], Result], items: Iterable[Item], workers_lock: Path | None = None
) -> Iterator[Result]:
    """In this process, one item after the other."""
    return map(function, items)


@contextmanager
def runner(launch: Launch, folder: Path, on_cluster: bool) -> Iterator[Run]:
    """In this process, or on the Ray cluster of `launch`, whose start takes seconds.

    `folder`: the run directory.
    """
    if not on_cluster:
        yield run_here
        return
    from vcsoup_dist.launch.ray_cluster import ray_cluster

    with ray_cluster(launch, folder):
        yield _run_as_tasks


def _run_as_tasks(
    function: Callable[[Item], Result], items: Iterable[Item], workers_lock: Path | None = None
) -> Iterator[Result]:
    import ray

    task: Any = ray.remote(num_cpus=1)(_task)
    most = IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    try:
        for item in items:
            if len(waiting) == most:
                yield _result(waiting.popleft())
            waiting.append(task.remote(function, item, workers_lock))
        while waiting:
            yield _result(waiting.popleft())
    finally:  # where an error ends the map, or its reader goes away
        for reference in waiting:
            ray.cancel(reference)


def _task(function: Callable[[Item], Result], item: Item, workers_lock: Path | None) -> Result:
    die_with_parent(int(os.environ["RAY_RAYLET_PID"]))
    with nullcontext() if workers_lock is None else shared_by_process(workers_lock):
        return function(item)


def _result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:500]
        raise UserError(
            "a Ray task died several times; out of memory? give the nodes more for each CPU "
            f"({reason})"
        ) from error
