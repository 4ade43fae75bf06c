"""Rewards as objects that score texts: sequence classifiers and Python functions.

One model may serve several values, V of them: it is loaded once, and one forward gives V rewards.
Rewards from columns need neither model nor actor: `scoring.columns`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answer_text import DROPPED
from vcsoup_dist.preferences.pair import Message

log = logging.getLogger("vcsoup")

Text = tuple[Sequence[Message], str]
"""Prompt messages, response."""

OF_ONE_VALUE = {"output", "softmax", "head", "sign"}
"""Keys in which the rewards of one model may differ."""


Served = TypeVar("Served", bound=BaseModel)
"""A kind of rewards in the recipe."""


@dataclass(frozen=True)
class Scored:
    """V rewards of each of n texts."""

    rewards: NDArray[np.float64]
    """[n, V] float64; the sign is applied, so that higher is better. NaN where there is none."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Text -> why one of its rewards is missing: the function raised, or it is NaN or infinite."""
    truncated: int = 0
    """Texts of which something was cut."""
    truncated_responses: int = 0
    """Those of them whose response alone was too long."""
    dropped: frozenset[int] = frozenset()
    """Texts whose tokens lack a part of the response, which the reward has not seen."""
    first: Sequence[int] = ()
    """[n] of each text the first one with the same tokens; empty where all texts differ."""


class Reward(Protocol):
    """Scores texts, each by itself: the others in a call do not matter."""

    description: str
    """What was decided when it was loaded, in one line."""

    def encode(self, texts: Sequence[Text]) -> Any:
        """What `score` needs of texts. A thread may encode while another one scores."""

    def score(self, encoded: Any) -> Scored:
        """Rewards of texts that were encoded."""


def model_key(reward: Mapping[str, Any]) -> str:
    """Equal for rewards, as JSON-able settings, that one loaded model can serve."""
    shared = {key: value for key, value in reward.items() if key not in OF_ONE_VALUE}
    return json.dumps(shared if "classifier" in reward else dict(reward), sort_keys=True)


def by_model(rewards: Mapping[str, Served]) -> list[dict[str, Served]]:
    """Rewards by what they are called, those together that one loaded model can serve."""
    groups: dict[str, dict[str, Served]] = {}
    for name, reward in rewards.items():
        key = model_key(reward.model_dump(mode="json", exclude={"pool"}))
        groups.setdefault(key, {})[name] = reward
    return list(groups.values())


def score_all(reward: Reward, texts: Sequence[Text], names: Sequence[str]) -> NDArray[np.float64]:
    """Rewards [n, V] of texts that must all have one; raises UserError naming the first without.

    `names`: what the error calls the texts.
    """
    scored = reward.score(reward.encode(texts))
    for i, reason in scored.failures.items():
        raise UserError(f"{reward.description}: no reward of {names[i]}: {reason}")
    if scored.dropped:
        log.warning(
            "%s: of %d of %d answers %s; the first is %s",
            reward.description, len(scored.dropped), len(texts), DROPPED,
            names[min(scored.dropped)],
        )  # fmt: skip
    return scored.rewards


def failures_of(rewards: NDArray[np.float64]) -> dict[int, str]:
    """Text -> what is wrong, for rewards [n, V] that are not finite."""
    wrong = np.flatnonzero(~np.isfinite(rewards).all(axis=1)).tolist()
    return {i: f"its reward is {rewards[i][~np.isfinite(rewards[i])][0]}" for i in wrong}
