"""The base of the classes whose objects are a pool's Ray actors."""

from __future__ import annotations

import os
import platform
import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from vcsoup_dist.processes import die_with_parent


@dataclass(frozen=True)
class Place:
    """Where a worker runs."""

    node: str
    """Ray's id of the machine."""
    process: str
    """Such as `process 123 on node-1`."""


class PoolWorker(ABC):
    """A process that loads something large once, and then does one task after another.

    It dies with its node's raylet. Subclasses call `super().__init__()` first, and load in `load`:
    of an exception in `__init__` Ray returns the text alone.
    """

    def __init__(self) -> None:
        die_with_parent(int(os.environ["RAY_RAYLET_PID"]))
        # Ray's handler raises SystemExit wherever the main thread is: within a user's function,
        # say, which then seems to have failed. Files are written atomically, so dying is safe.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def place(self) -> Place:
        """Where this runs; returns as soon as Ray has placed the actor."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        return Place(node, f"process {os.getpid()} on {platform.node()}")

    @abstractmethod
    def load(self) -> str:
        """Load what all tasks need; returns a description for the log, which may be empty."""

    @abstractmethod
    def run(self, task: Any, following: Any | None) -> Any:
        """Do a task, and prepare the following one meanwhile; returns what `Workload` expects."""
