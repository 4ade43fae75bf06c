"""Rewards as objects that score texts: sequence classifiers and Python functions.

Rewards from columns need neither model nor actor: `scoring.columns`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences import Message
from vcsoup_dist.recipe import CallableReward, ClassifierReward

Text = tuple[Sequence[Message], str]
"""Prompt messages, response."""


@dataclass(frozen=True)
class Scored:
    """Rewards of n texts."""

    rewards: NDArray[np.float64]
    """[n] float64, finite; the sign is applied, so that higher is better."""
    truncated: int = 0
    """Texts of which something was cut."""
    truncated_responses: int = 0
    """Those of them whose response alone was too long."""


class Reward(Protocol):
    """Scores texts, each by itself: the others in a call do not matter."""

    description: str
    """What was decided when it was loaded, in one line."""

    def score(self, texts: Sequence[Text], names: Sequence[str] | None = None) -> Scored:
        """Rewards of texts; `names` are what errors call them. Raises UserError, for a reward that
        is NaN or infinite too."""


def load_reward(
    reward: ClassifierReward | CallableReward,
    source: Located,
    *,
    device: str = "cpu",
    tokens_per_batch: int = 8192,
) -> Reward:
    """Load a reward from where the plan found it; raises UserError naming the model or function."""
    if isinstance(reward, CallableReward):
        from vcsoup_dist.scoring.function import FunctionReward

        return FunctionReward(reward, source)
    from vcsoup_dist.scoring.classifier import Classifier

    return Classifier(reward, source, device=device, tokens_per_batch=tokens_per_batch)


def check_finite(rewards: Sequence[float], what: str, names: Sequence[str] | None) -> None:
    """Raise UserError naming the reward and the first text whose reward is no number."""
    for i, value in enumerate(rewards):
        if not math.isfinite(value):
            raise UserError(f"{what}: its reward of {name_of(i, names)} is {value}")


def name_of(index: int, names: Sequence[str] | None) -> str:
    """What errors call the text at `index`."""
    return names[index] if names is not None else f"text {index}"
