"""What the launcher hands to the ranks, as one JSON file; all paths are absolute."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vcsoup_dist.files import write_atomically
from vcsoup_dist.recipe import Launch, Training

SUMMARY = "training.json"
"""Of a finished policy, what rank 0 writes last."""


@dataclass(frozen=True)
class ReferenceTask:
    """Reference log-probs of one dataset."""

    pairs: str
    """Folder with the dataset's canonical pairs."""
    output: str
    workers_lock: str


@dataclass(frozen=True)
class PolicyTask:
    """One policy."""

    name: str
    pairs: list[str]
    """Parquet files of the pairs to train on."""
    heldout: list[str]
    """Parquet files of held-out pairs."""
    references: list[str]
    """Folders with reference log-probs of those pairs; none for objectives without reference."""
    seed: int
    unfiltered_pairs: int
    """Pairs of the value before filtering: what `equal_steps` counts."""
    output: str
    scratch: str
    logs: str
    workers_lock: str


@dataclass(frozen=True)
class Job:
    """One launch of ranks: all of `references`, or one policy."""

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
        content = asdict(self) | {
            "training": self.training.model_dump(mode="json"),
            "launch": self.launch.model_dump(mode="json"),
        }
        write_atomically(path, json.dumps(content, indent=1))

    @staticmethod
    def read(path: Path) -> Job:
        """Read what `write` wrote."""
        content = json.loads(path.read_text())
        policy = content["policy"]
        return Job(
            content["model"],
            content["revision"],
            content["deepspeed_config"],
            Training.model_validate(content["training"]),
            Launch.model_validate(content["launch"]),
            [ReferenceTask(**task) for task in content["references"]],
            PolicyTask(**policy) if policy else None,
            content["swap_folder"],
        )
