"""`summary.json`: what a report says about rewards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vcsoup_dist.records.json_record import read_record, write_record

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Cell:
    """One row's reward of one value, in the reward's units, averaged over prompts and seeds."""

    mean: float
    low: float
    """Bootstrap interval over the prompts, of the mean over the seeds."""
    high: float
    seed_spread: float | None
    """Standard deviation (n - 1) of the seeds' means; None for one seed."""
    scaled: float
    """The mean on `Summary.scale`, 0 to 1."""


@dataclass(frozen=True)
class Row:
    """A method's soup of one lambda over all seeds; or theta_0, without method and weights."""

    method: str | None
    weights: dict[str, float] | None
    names: tuple[str, ...]
    """The evaluations that were averaged."""
    seeds: tuple[int, ...]
    cells: dict[str, Cell]
    on_front: bool
    """Among all rows."""
    on_method_front: bool
    """Among the rows of its method; False for theta_0."""
    unfinished: float | None = None
    """Share of the answers that did not end within the limit, mean over the seeds."""


@dataclass(frozen=True)
class MethodSummary:
    """One method's soups together. Row numbers are indices into `Summary.rows`."""

    method: str
    rows: tuple[int, ...]
    front: tuple[int, ...]
    balanced: int
    hypervolume: float
    """Of scaled values above `Scale.reference_scaled`, mean over the seeds."""
    hypervolume_spread: float | None
    """Standard deviation (n - 1) over the seeds; None for one seed."""
    hypervolume_by_seed: dict[int, float]
    hypervolume_original: float
    """Above `Scale.reference`, in the product of the rewards' units, mean over the seeds."""
    mean_inner_product: float
    """Of lambda with the scaled values; a value without a policy weighs 0."""


@dataclass(frozen=True)
class Scale:
    """How values are made comparable: min-max over every evaluation, theta_0 and seeds alike."""

    low: dict[str, float]
    """What becomes 0, in the reward's units."""
    high: dict[str, float]
    """What becomes 1."""
    reference: dict[str, float]
    """Hypervolume's reference point in the rewards' units."""
    reference_scaled: dict[str, float]
    """The reference point for scaled values."""


@dataclass(frozen=True)
class Edge:
    """Rewards along the line from one policy to another of one method."""

    method: str
    start: str
    """Value whose policy stands at position 0."""
    end: str
    """Value whose policy stands at position 1."""
    positions: tuple[float, ...]
    rewards: dict[str, tuple[float, ...]]
    line: dict[str, tuple[float, ...]]
    """The straight line between the end points' rewards, at the same positions."""
    barrier: dict[str, float]
    """Largest drop below the line, per value in the reward's units, >= 0."""
    barrier_at: dict[str, float | None]
    """Its position; None without a drop."""


@dataclass(frozen=True)
class Summary:
    """All rows of a run, compared."""

    VERSION: ClassVar[int] = 1

    values: tuple[str, ...]
    axes: tuple[str, ...]
    """Values with a policy: the order of the weights."""
    prompts: int
    resamples: int
    confidence: float
    scale: Scale
    rows: tuple[Row, ...]
    """theta_0 first, then by method, then by weights."""
    methods: tuple[MethodSummary, ...]
    front: tuple[int, ...]
    """Of all rows, theta_0 included."""
    balanced: int
    """Among all rows, theta_0 included."""
    edges: tuple[Edge, ...]

    def write(self, folder: Path) -> None:
        """Into the folder of a report."""
        write_record(folder / SUMMARY, self)

    @classmethod
    def read(cls, folder: Path) -> Summary:
        """Of the report in a folder; UserError where it is damaged or of another version."""
        return read_record(folder / SUMMARY, cls)
