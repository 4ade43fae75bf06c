"""What a stage tells a pool of workers: the tasks, the workers, and what results mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.placement import WorkerResources
from vcsoup_dist.launch.worker import PoolWorker


class Task(Protocol):
    """A unit of work and of recovery."""

    @property
    def name(self) -> str:
        """What errors call it; no other task of the workload has it."""


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class FailedTask(Generic[T]):
    """A task that the pool has given up."""

    task: T
    reason: str
    """One line."""
    details: str
    """All that Ray says."""


@dataclass(kw_only=True, eq=False)
class Workload(ABC, Generic[T]):
    """All tasks of one pool, whose workers load the same."""

    name: str
    """What errors call it."""
    section: str
    """The part of the recipe that asks for the workers."""
    tasks: Sequence[T]
    workers: int
    """At most so many at a time."""
    resources: WorkerResources
    """Of each worker."""
    memory_advice: str
    """What to lower where a task needs more memory than there is."""
    patience: float = 300.0
    """Seconds after which the log names a task that does not return."""
    hang_advice: str = "see its line by `py-spy dump` there"
    look_ahead: bool = False
    """Whether a worker gets the following task too, to prepare it."""
    last_attempt_alone: bool = False
    """Whether a task that lost its workers has its last attempt while the pool does nothing else:
    several tasks may need more memory together than a node has."""

    @abstractmethod
    def worker(self) -> tuple[type[PoolWorker], tuple[Any, ...]]:
        """Class of the workers, and its arguments."""

    @abstractmethod
    def finished(self, task: T, result: Any) -> float:
        """Take the result of a task; returns the progress. Raises UserError to end everything."""

    @abstractmethod
    def raise_if_final(self, what: str, error: Any) -> None:
        """Raise what ends everything, where no other attempt would avoid an exception.

        `error`: Ray's, whose `cause` is the worker's exception; `what`: the task or workload.
        """

    @abstractmethod
    def gave_up(self, failed: Sequence[FailedTask[T]]) -> UserError:
        """Take note of all tasks given up so far, after each.

        Returns the error in which the workload ends after all other tasks; raises it to end
        everything now.
        """
