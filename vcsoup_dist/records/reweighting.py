"""How a policy for one trade-off weighs the pairs of all values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Labels = Literal["sign", "votes", "own", "logits", "margin", "implicit"]


@dataclass(frozen=True)
class Reweighting:
    """What a pair's label p, margin m and weight v, and a run's divisor w, are made of.

    With lambda_j the weights, g_j a pair's scaled gaps under what each value prefers, a_j the
    temperatures and Dr_j the rewards' differences:
    """

    labels: Labels
    """`sign`: p = 1 where sum lambda_j g_j > 0, else 0; ties are left out.
    `votes`: p = sum lambda_j 1[g_j > 0], a tie counting one half.
    `own`: each value's own pairs with its own label, p = 1 and v = N lambda_i.
    `logits`: p = sigmoid(sum lambda_j a_j Dr_j).
    `margin`: the pairs of `value` with its label, p = 1, m the sum of lambda_j a_j Dr_j over the
    other values, and w = lambda of `value`.
    `implicit`: as `margin`, with the implicit rewards of trained policies in place of a_j Dr_j."""
    weights: Mapping[str, float]
    """lambda by trained value, in the recipe's order."""
    datasets: Mapping[str, list[str]]
    """Trained value -> the datasets whose pairs teach it."""
    value: str | None = None
    """Whose pairs `margin` and `implicit` take."""

    @property
    def rewarded_by(self) -> dict[str, float]:
        """lambda_j of the other values whose policies' implicit rewards are its margin."""
        if self.labels != "implicit":
            return {}
        return {name: w for name, w in self.weights.items() if w and name != self.value}

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Reweighting:
        """What `as_json` made this of."""
        return cls(**content)
