"""What a scoring worker is given, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.records.pairs import PairSlice


@dataclass(frozen=True)
class Output:
    """One value's scores of one shard."""

    product: str
    column: int
    """Which of the model's V rewards it is."""
    file: Path
    """To write."""
    workers_lock: Path
    """Lock of the product that the file belongs to."""


@dataclass(frozen=True)
class ShardTask:
    """One shard of pairs to score, and the files that lack its scores."""

    pairs: PairSlice
    outputs: tuple[Output, ...]

    @property
    def name(self) -> str:
        """What errors call it."""
        products = ", ".join(output.product for output in self.outputs)
        return f"{products}: {self.outputs[0].file.name}"


@dataclass(frozen=True)
class Unscored:
    """Pairs of one output that have no reward."""

    product: str
    pairs: int
    first: str
    """Id of the first of them, and why."""
