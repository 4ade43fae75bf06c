"""MODPO (arXiv 2310.03708): DPO on one value's pairs with the other values' rewards as a margin."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from vcsoup_dist.methods.method import SoupMethod
from vcsoup_dist.methods.reweighted import ReweightedMethod, Weights
from vcsoup_dist.records.reweighting import Labels, Reweighting

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe

LEAST_WEIGHT = 0.1
"""Of the value whose pairs it trains on: the loss divides by it, so smaller ones blow up."""


class Modpo(ReweightedMethod):
    """-log sigmoid((beta h - sum of lambda_j a_j Dr_j over j != k) / lambda_k)."""

    rewards: Literal["explicit", "implicit"] = "explicit"
    """`explicit`: those of the recipe, times their temperatures a_j. `implicit`, as its authors'
    safety script: beta times the log-ratio to theta_0 of a policy trained on value j alone."""
    rewards_of: str | None = None
    """The method instance whose policies give implicit rewards; absent: the first `rewarded_soup`.
    """

    def label_kind(self, recipe: Recipe) -> Labels:
        """A margin."""
        return "margin" if self.rewards == "explicit" else "implicit"

    def implicit_rewards_of(self, recipe: Recipe) -> str | None:
        """`rewards_of`, or the first instance of `rewarded_soup`."""
        if self.rewards == "explicit":
            return None
        first = (name for name, each in recipe.methods.items() if each.kind == "rewarded_soup")
        return self.rewards_of or next(first, None)

    def reaches(self, recipe: Recipe, weights: Weights) -> bool:
        """lambda_k is at least `LEAST_WEIGHT`."""
        return weights[self._index(recipe)] >= LEAST_WEIGHT - 1e-9

    def notes(self, recipe: Recipe) -> list[str]:
        """Which end points it cannot reach, and whose policies its rewards are."""
        value = recipe.trained_values()[self._index(recipe)]
        reason = f"it is defined only where the weight of `{value}` is at least {LEAST_WEIGHT}"
        lines = [f"{line}; {reason}" for line in super().notes(recipe)]
        if source := self.implicit_rewards_of(recipe):
            lines.append(f"its rewards are the policies of `{source}`; its cost is without theirs")
        return lines

    def check(self, recipe: Recipe) -> None:
        """Raises ValueError also where a listed trade-off is out of reach."""
        k = self._index(recipe)
        for i, row in enumerate(recipe.reweighting.weights or []):
            if not self.reaches(recipe, tuple(row)):
                value = recipe.trained_values()[k]
                raise ValueError(
                    f"divides by the weight of `{value}`: reweighting.weights[{i}] gives it "
                    f"{row[k]:g}, and it must be at least {LEAST_WEIGHT}; take that row out, or "
                    "another reweighting.modpo_value"
                )
        self._check_rewards(recipe)
        super().check(recipe)

    def _check_rewards(self, recipe: Recipe) -> None:
        if self.rewards == "explicit":
            if self.rewards_of is not None:
                raise ValueError("rewards_of: is read with `rewards: implicit` alone; take it out")
            return
        source = self.implicit_rewards_of(recipe)
        if source is None:
            raise ValueError(
                "rewards: implicit ones are those of a policy per value; add the method "
                "`rewarded_soup`, or name another in `rewards_of`"
            )
        if not isinstance(recipe.methods.get(source), SoupMethod):
            raise ValueError(
                f"rewards_of: `{source}` is no method of this recipe that trains a policy per value"
            )

    def _reweighting(self, recipe: Recipe, weights: Weights) -> Reweighting:
        value = recipe.trained_values()[self._index(recipe)]
        return dataclasses.replace(super()._reweighting(recipe, weights), value=value)

    def _index(self, recipe: Recipe) -> int:
        value = recipe.reweighting.modpo_value
        return 0 if value is None else recipe.trained_values().index(value)


METHOD = Modpo
