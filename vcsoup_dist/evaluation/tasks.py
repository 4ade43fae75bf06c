"""What an evaluation worker is given, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.identity import Located
from vcsoup_dist.in_context.prompts import AddedText


@dataclass(frozen=True)
class VirtualSoup:
    """A soup that is not on disk."""

    policies: tuple[Path, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class EvaluationTask:
    """One model to evaluate."""

    name: str
    model: Located | VirtualSoup
    theta_0: Located
    """Which the model's answers are compared under; equal to `model` where that is it."""
    output: Path
    """Folder to write the answers into."""
    workers_lock: Path
    with_pairs: bool = False
    """Whether log-probs of the held-out pairs are wanted too."""
    added: AddedText | None = None
    """What this model is asked on top of each prompt. Judges and report see the prompt alone."""


@dataclass(frozen=True)
class AnswerCounts:
    """How many answers a model gave."""

    answers: int
    unfinished: int
    """Those that did not end within the limit."""
