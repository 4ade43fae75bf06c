"""How a method writes the rewards of an answer into its prompt, and which it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Place = Literal["system", "end"]
Bounds = Literal["gaussian"] | tuple[float, float]


@dataclass(frozen=True)
class ScorePrompt:
    """What is added to a prompt: the scores of an answer, one per value."""

    template: str
    """With `{NAME}` where the score of the value NAME stands."""
    place: Place
    """`system`: in the system message, after its own text; `end`: after the last user message."""
    values: Sequence[str]
    """Those of the scores, in the recipe's order."""

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ScorePrompt:
        """What `as_json` made this of."""
        return cls(**content)


@dataclass(frozen=True)
class AskedScores:
    """The scores that the prompts of one trade-off ask for."""

    scores: ScorePrompt
    bounds: Bounds
    """What a score of the weight 0 and one of the weight 1 are: two quantiles of the standardised
    rewards of the training answers, or `gaussian`, the extremes of 50,000 standard normal draws."""
    weights: Sequence[float]
    """lambda, in the order of `scores.values`."""

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> AskedScores:
        """What `as_json` made this of."""
        scores = ScorePrompt.from_json(content["scores"])
        return cls(scores, content["bounds"], content["weights"])
