"""What a report shows, as plain data: a stage fills it in, `report.render` writes it as a page.

All text may hold anything; it is escaped where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcsoup_dist.records.summary import Summary


@dataclass(frozen=True)
class PairsRead:
    """What became of the rows of one value's preference data."""

    dataset: str
    """The value that brings the data."""
    rows: int
    """Rows read."""
    training: int
    """Pairs to train on."""
    heldout: int
    """Pairs held out."""
    duplicates: int
    """Pairs left out because the same pair came before."""
    leaked: int
    """Training pairs left out because their prompt is held out."""
    rejected: Mapping[str, int]
    """Unusable rows by reason."""
    left_out: Mapping[str, int]
    """Rows that are fine but make no pair, by reason."""
    joined: int
    """Rows that are the other half of a pair: one response a row."""
    returned_prompts: int
    """Times that a prompt came back after others; only neighbouring rows are paired."""


@dataclass(frozen=True)
class PairsScored:
    """One reward over one dataset's training pairs."""

    dataset: str
    value: str
    pairs: int
    unscored: int
    """Pairs, training and held out, of which an answer has no reward."""
    reasons: Mapping[str, int]
    """The most frequent reasons for that, and their pairs."""
    truncated: int
    """Texts whose prompt was cut to the reward model's length."""
    mean: float | None
    """Of the rewards of chosen and rejected answers together; None where there are none."""
    std: float | None


@dataclass(frozen=True)
class Patterns:
    """One value's usable pairs by the signs of their gaps, before and after each filter."""

    value: str
    all_pairs: Mapping[str, int]
    """Pairs by pattern, such as `++` or `+-` in the order of the values."""
    kept: Mapping[str, Mapping[str, int]]
    """Method -> pattern -> pairs that it keeps; a pattern that is not named counts 0."""


@dataclass(frozen=True)
class Policy:
    """What one policy of the filter keeps of a value's pairs, or would keep."""

    name: str
    pairs: int
    share: float | None
    """Of the usable pairs; None where there are none."""
    all_positive: float | None
    """Share of the kept pairs whose gaps are all positive; None where nothing is kept."""
    recipe: bool
    """Whether it is the recipe's."""


@dataclass(frozen=True)
class Agreement:
    """How far the N values agree about one value's training pairs."""

    value: str
    conflicts: Sequence[Sequence[float]]
    """[N, N] share of the usable pairs in which two values prefer different answers."""
    correlation: Sequence[Sequence[float | None]]
    """[N, N] of the gaps; None where one of the two does not vary."""
    policies: Sequence[Policy]


@dataclass(frozen=True)
class Trained:
    """The last numbers of one policy's training curve."""

    method: str
    value: str
    seed: int
    last: Mapping[str, float | int | str | None]
    """Name -> number, such as steps, loss, accuracy; the names become columns."""


@dataclass(frozen=True)
class Prompts:
    """The evaluation prompts of one dataset."""

    dataset: str
    prompts: int
    left_out: int
    """Held-out prompts left out because they are too long."""
    in_training: Sequence[str]
    """Texts of evaluation prompts that occur in this dataset's training pairs."""


@dataclass(frozen=True)
class Answer:
    """What one soup (or theta_0) answered to a sample prompt."""

    soup: str
    """Which soup, as a reader should see it."""
    text: str
    rewards: Mapping[str, float]
    """Reward by value."""


@dataclass(frozen=True)
class Sample:
    """One prompt and the answers to it, side by side."""

    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Plot:
    """A PNG with a caption."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class ReportData:
    """Everything on the page, in the page's order."""

    title: str
    """The recipe's name."""
    facts: Mapping[str, str]
    """What was run, such as model, values and their rewards, methods, steps, versions."""
    notes: Sequence[str]
    """Sentences that a reader must know before trusting the numbers; may be empty."""
    summary: Summary
    front_plot: bytes
    """PNG of `figures.front_plot`."""
    hypervolume_plot: bytes
    """PNG of `figures.hypervolume_plot`."""
    edge_plot: bytes | None
    """PNG of `figures.edge_plot`; None where the summary has no edges."""
    pairs: Sequence[PairsRead]
    scores: Sequence[PairsScored]
    patterns: Sequence[Patterns]
    agreements: Sequence[Agreement]
    consistency_plots: Sequence[Plot]
    trained: Sequence[Trained]
    prompts: Sequence[Prompts]
    samples: Sequence[Sample]
    commands: Sequence[str]
    """The exact commands, in the order in which they make this report again."""
    recipe: str
    """The recipe's text."""
