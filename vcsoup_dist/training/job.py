"""What the launcher hands to the ranks, as one JSON file; all paths are absolute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vcsoup_dist.recipe import Launch, Training
from vcsoup_dist.records.json_record import read_record, write_record


@dataclass(frozen=True)
class ReferenceTask:
    """Reference log-probs of one part of a dataset's pairs."""

    tokens: str
    """Folder with the dataset's pairs in tokens."""
    output: str
    """Folder of the part, which the launcher began."""
    workers_lock: str


@dataclass(frozen=True)
class Selection:
    """Pairs of the token files to train on, and what became of the others."""

    file: str
    """`.npy` with a row of `selection.ROW` for each usable pair."""
    pairs: int
    left_out: dict[str, int]
    """Reason -> unusable pairs."""
    refused: str | None
    """The first pair that the chat template refuses, and why."""
    divisor: float = 1.0
    """w of `objectives.LossTargets`."""


@dataclass(frozen=True)
class PolicyTask:
    """One policy."""

    name: str
    tokens: list[str]
    """Folders with the datasets' pairs in tokens."""
    references: list[str]
    """Of each, the folder with its reference log-probs; none for objectives without reference."""
    train: Selection
    heldout: Selection
    seed: int
    unfiltered_pairs: int
    """Pairs before filtering: what `equal_steps` counts."""
    output: str
    scratch: str
    logs: str
    workers_lock: str


@dataclass(frozen=True)
class Job:
    """One launch of ranks: all of `references`, or one policy."""

    VERSION: ClassVar[int] = 3

    model: str
    revision: str | None
    deepspeed_config: str
    training: Training
    launch: Launch
    references: list[ReferenceTask]
    policy: PolicyTask | None
    swap_folder: str | None = None
    """On every node's own disk, for this job alone; where the configuration swaps to one."""

    def write(self, path: Path) -> None:
        """Write the job for the ranks to read."""
        write_record(path, self)

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read what `write` wrote."""
        return read_record(path, cls)
