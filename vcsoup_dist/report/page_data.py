"""What a report shows, as plain data: `stage.make` gathers it, `page.render` shows it.

All text may hold anything; it is escaped where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcsoup_dist.records.answer_figures import AnswerFigures
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.summary import Summary
from vcsoup_dist.report.pair_flow import PairFlow
from vcsoup_dist.report.stage_times import StageTime
from vcsoup_dist.report.statistics.cost import MethodCost


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
    """Times that a prompt came back after others; only adjacent rows are paired."""


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
class Plot:
    """A PNG with a caption."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Filters:
    """What the methods keep of one value's pairs."""

    value: str
    reports: Mapping[str, FilterReport]
    """By method."""
    shown: str
    """The method whose view of the pairs is shown."""
    plots: Sequence[Plot]
    """Its plots."""


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
class ReportData:
    """Everything on the page, in the page's order."""

    title: str
    """The recipe's name."""
    facts: Mapping[str, str]
    """What was run, such as model, values and their rewards, methods, steps, versions."""
    notes: Sequence[str]
    """Sentences that a reader must know before trusting the numbers; may be empty."""
    summary: Summary
    figures: AnswerFigures
    front_plot: bytes
    """PNG of `figures.front_plot`."""
    hypervolume_plot: bytes
    """PNG of `figures.hypervolume_plot`."""
    edge_plot: bytes | None
    """PNG of `figures.edge_plot`; None where the summary has no edges."""
    curve_plot: bytes | None
    """PNG of `curve_plot.curve_plot`; None where no policy has a log of its steps."""
    costs: Sequence[MethodCost]
    pairs: Sequence[PairsRead]
    scores: Sequence[PairsScored]
    filters: Sequence[Filters]
    flows: Sequence[PairFlow]
    stage_times: Sequence[StageTime]
    """Of the stages before the report."""
    trained: Sequence[Trained]
    prompts: Sequence[Prompts]
    samples: Sequence[Sample]
    commands: Sequence[str]
    """The exact commands, in the order in which they make this report again."""
    recipe: str
    """The recipe's text."""
