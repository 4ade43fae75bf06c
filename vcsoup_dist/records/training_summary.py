"""`training.json`: what a finished training says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vcsoup_dist.records.json_record import read_record, write_record

SUMMARY = "training.json"


@dataclass(frozen=True)
class PairMetrics:
    """Means over pairs."""

    loss: float
    """The objective's; SFT: per chosen answer token."""
    accuracy: float | None = None
    """Share of pairs whose chosen answer has the larger reward; None for SFT."""
    margin: float | None = None
    """Reward of the chosen answer minus that of the rejected; None for SFT."""


@dataclass(frozen=True)
class TrainingSummary:
    """One policy, or theta_0 after SFT."""

    VERSION: ClassVar[int] = 1

    steps: int
    """Optimizer steps of the exported checkpoint."""
    pairs: int
    """Those trained on."""
    pairs_left_out: dict[str, int]
    """Reason -> pairs."""
    passes: float
    """Over the pairs, in `steps`."""
    last_step: PairMetrics
    heldout: PairMetrics | None
    """Of the exported checkpoint; None where no pair was held out."""

    def write(self, folder: Path) -> None:
        """Into the folder of a model."""
        write_record(folder / SUMMARY, self)

    @classmethod
    def read(cls, folder: Path) -> TrainingSummary:
        """Of the model in a folder; UserError where it is damaged or of another version."""
        return read_record(folder / SUMMARY, cls)
