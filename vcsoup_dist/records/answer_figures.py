"""`answers.json` of a report: what rewards alone do not show of the candidates' answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vcsoup_dist.records.json_record import read_record, write_record

ANSWER_FIGURES = "answers.json"

REPEATS = 0.3
"""An answer repeats itself where more than this share of it was said before in it."""

MANY = 0.1
"""Share of unfinished or repeating answers above which there is a warning."""


@dataclass(frozen=True)
class CandidateAnswers:
    """The answers of a row of the summary, over its prompts and seeds; None: not computable."""

    method: str | None
    """None for theta_0."""
    weights: dict[str, float] | None
    names: tuple[str, ...]
    """The evaluations."""
    tokens: float
    """Mean, the end token included."""
    unfinished: float
    """Share that did not end within the limit."""
    repeating: float
    """Share whose repeated share is above `REPEATS`."""
    log_ratio: float | None
    """Mean of log pi(y|x) - log pi_0(y|x), in nats an answer."""
    log_ratio_error: float | None
    """Its standard error over the prompts; None for one."""
    rewards: dict[str, float]
    """Mean by value."""
    adjusted: dict[str, float | None]
    """The same at the mean length of all answers."""


@dataclass(frozen=True)
class LengthEffect:
    """How a value's reward goes with the length of answers; None: not computable."""

    slope: float | None
    """Reward per token, between answers of one candidate to one prompt, all others' means taken."""
    low: float | None
    """Of its bootstrap interval over the prompts."""
    high: float | None
    within: float | None
    """Correlation of reward and tokens, both less their prompt's and candidate's means."""
    between: float | None
    """Correlation of the candidates' mean rewards and mean tokens."""


@dataclass(frozen=True)
class AnswerFigures:
    """The figures of all rows of a summary, in its order."""

    VERSION: ClassVar[int] = 1

    rows: tuple[CandidateAnswers, ...]
    effects: dict[str, LengthEffect]
    """By value."""
    is_kl: bool
    """Whether every answer was drawn from its model's own probabilities: then the log-ratio
    estimates KL(pi || pi_0)."""

    def write(self, folder: Path) -> None:
        """Into the folder of a report."""
        write_record(folder / ANSWER_FIGURES, self)

    @classmethod
    def read(cls, folder: Path) -> AnswerFigures:
        """Of the report in a folder; UserError where it is damaged or of another version."""
        return read_record(folder / ANSWER_FIGURES, cls)
