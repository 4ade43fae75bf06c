"""`summary.json`: what a report says about rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vcsoup_dist.records.json_record import read_record, write_record

SUMMARY = "summary.json"


@dataclass(frozen=True)
class AgainstStart:
    """A model against theta_0 in one value, on the same prompts; bounds are None for one prompt."""

    difference: float
    """Of the means, in the reward's units; positive where the model is better."""
    low: float | None
    high: float | None
    win_rate: float
    """Share of the prompts whose answer has the larger reward, ties half; mean over the seeds."""
    win_low: float | None
    win_high: float | None


@dataclass(frozen=True)
class Cell:
    """One row's reward of one value, in the reward's units, averaged over prompts and seeds."""

    mean: float
    low: float | None
    """Interval over prompts and, where there are several, seeds; None for one prompt."""
    high: float | None
    seed_spread: float | None
    """Standard deviation (n - 1) of the seeds' means; None for one seed."""
    scaled: float
    """The mean on `Summary.scale`: below 0 or above 1 where it lies beyond what spans it."""
    against_start: AgainstStart | None
    """None for theta_0 itself, and where it was not evaluated."""


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

    @property
    def policy(self) -> str | None:
        """The value of the policy that it is, by its weights; None for a sum of several."""
        return policy_of(self.weights)


def policy_of(weights: Mapping[str, float] | None) -> str | None:
    """The value that has a weight of 1 where all others have none."""
    parts = {axis: weight for axis, weight in (weights or {}).items() if weight}
    return next(iter(parts)) if list(parts.values()) == [1] else None


@dataclass(frozen=True)
class MethodSummary:
    """One method's soups together. Row numbers are indices into `Summary.rows`."""

    method: str
    rows: tuple[int, ...]
    front: tuple[int, ...]
    balanced: int
    hypervolume: float
    """Of scaled values above `Scale.reference_scaled`, mean over the seeds, as measured."""
    hypervolume_bias: float
    """How much too large it is for being a maximum, by the bootstrap."""
    hypervolume_low: float | None
    """Interval of the hypervolume less its bias; None for one prompt."""
    hypervolume_high: float | None
    hypervolume_spread: float | None
    """Standard deviation (n - 1) over the seeds; None for one seed."""
    hypervolume_by_seed: dict[int, float]
    hypervolume_original: float
    """Above `Scale.reference`, in the product of the rewards' units, mean over the seeds."""
    mean_inner_product: float | None
    """Of lambda with the scaled values, over the rows whose lambda sums to 1; a value without a
    policy weighs 0. None without such a row."""

    @property
    def corrected(self) -> float:
        """The hypervolume less its bias; 0 where the bias is larger, since no volume is less."""
        return max(0.0, self.hypervolume - self.hypervolume_bias)

    @property
    def is_cut(self) -> bool:
        """Whether `corrected` is 0 because the bias is larger than what was measured."""
        return self.hypervolume < self.hypervolume_bias


@dataclass(frozen=True)
class Comparison:
    """Two methods' hypervolumes at equal numbers of candidates, each less its bias."""

    first: str
    """The one with the larger hypervolume."""
    second: str
    difference: float
    low: float | None
    """Of the interval that holds for all pairs together; None for one prompt."""
    high: float | None

    @property
    def differs(self) -> bool:
        """Whether the first is ahead, beyond the errors of prompts and of several seeds."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Comparisons:
    """All methods at equal numbers of candidates, and all pairs of them."""

    candidates: int
    """Of each seed of each method."""
    like: str
    """The method with the fewest, whose weights the others' nearest candidates are taken for."""
    hypervolumes: dict[str, float]
    """Of each method at that number, less its bias; the largest first."""
    pairs: tuple[Comparison, ...]


@dataclass(frozen=True)
class Scale:
    """How values are made comparable: min-max over theta_0 and one method's candidates, by seed."""

    low: dict[str, float]
    """What becomes 0, in the reward's units."""
    high: dict[str, float]
    """What becomes 1."""
    reference: dict[str, float]
    """Hypervolume's reference point in the rewards' units."""
    reference_scaled: dict[str, float]
    """The reference point for scaled values."""
    method: str | None
    """Whose candidates span it, with theta_0; None where only theta_0 was evaluated."""
    policies_only: bool
    """Whether its single-value policies do. False where of no method all of them were evaluated, so
    that all candidates of `method` span it."""


@dataclass(frozen=True)
class Drop:
    """How far one value's rewards lie below the straight line, at each position between the ends of
    an edge; negative above it. In the reward's units, over prompts and seeds."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    """Of the band that holds all positions together."""
    high: tuple[float, ...]
    worst: int
    """Index of the largest drop; where there is a barrier, of that with the highest lower bound."""
    is_barrier: bool
    """Whether the band lies above 0 somewhere."""


@dataclass(frozen=True)
class Curvature:
    """The largest second difference of one value's rewards along an edge, by its size, in the
    reward's units per unit of position squared."""

    value: float
    """Positive where the rewards sag, negative where they bulge."""
    at: float
    """Its position."""
    low: float
    """Of the interval of its size."""
    high: float


@dataclass(frozen=True)
class LossCurve:
    """A value's DPO loss along an edge, in nats, over the held-out pairs of its data and seeds."""

    loss: tuple[float, ...]
    pairs: int
    rise: Drop
    """Above the straight line between the ends' losses; negative below it."""


@dataclass(frozen=True)
class Edge:
    """Rewards along the line from one policy to another of one method."""

    method: str
    start: str
    """Value whose policy stands at position 0."""
    end: str
    """Value whose policy stands at position 1."""
    seeds: tuple[int, ...]
    """Over which the rewards are averaged."""
    positions: tuple[float, ...]
    """The end's weight, from 0 to 1."""
    rewards: dict[str, tuple[float, ...]]
    line: dict[str, tuple[float, ...]]
    """The straight line between the end points' rewards, at the same positions."""
    drop: dict[str, Drop]
    curvature: dict[str, Curvature]
    losses: dict[str, LossCurve]
    """Of the values with held-out pairs of their own, where `evaluation.heldout_pairs` asks."""

    @property
    def barriers(self) -> list[str]:
        """The values that have one in their rewards."""
        return [value for value, drop in self.drop.items() if drop.is_barrier]


@dataclass(frozen=True)
class Summary:
    """All rows of a run, compared."""

    VERSION: ClassVar[int] = 3

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
    balanced_against_start: dict[str, AgainstStart]
    """By value, with intervals that hold for all values together; empty where it is theta_0."""
    comparisons: Comparisons | None
    """None without methods."""
    edges: tuple[Edge, ...]

    def write(self, folder: Path) -> None:
        """Into the folder of a report."""
        write_record(folder / SUMMARY, self)

    @classmethod
    def read(cls, folder: Path) -> Summary:
        """Of the report in a folder; UserError where it is damaged or of another version."""
        return read_record(folder / SUMMARY, cls)
