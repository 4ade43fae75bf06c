"""MODPO (arXiv 2310.03708): DPO on one value's pairs with the other values' rewards as a margin."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vcsoup_dist.methods.reweighted import ReweightedMethod, Weights
from vcsoup_dist.records.reweighting import Labels, Reweighting

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe

LEAST_WEIGHT = 0.1
"""Of the value whose pairs it trains on: the loss divides by it, so smaller ones blow up."""


class Modpo(ReweightedMethod):
    """-log sigmoid((beta h - sum of lambda_j a_j Dr_j over j != k) / lambda_k)."""

    def label_kind(self, recipe: Recipe) -> Labels:
        """A margin."""
        return "margin"

    def reaches(self, recipe: Recipe, weights: Weights) -> bool:
        """lambda_k is at least `LEAST_WEIGHT`."""
        return weights[self._index(recipe)] >= LEAST_WEIGHT - 1e-9

    def notes(self, recipe: Recipe) -> list[str]:
        """Which end points it cannot reach."""
        value = recipe.trained_values()[self._index(recipe)]
        reason = f"it is defined only where the weight of `{value}` is at least {LEAST_WEIGHT}"
        return [f"{line}; {reason}" for line in super().notes(recipe)]

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
        super().check(recipe)

    def _reweighting(self, recipe: Recipe, weights: Weights) -> Reweighting:
        value = recipe.trained_values()[self._index(recipe)]
        return dataclasses.replace(super()._reweighting(recipe, weights), value=value)

    def _index(self, recipe: Recipe) -> int:
        value = recipe.reweighting.modpo_value
        return 0 if value is None else recipe.trained_values().index(value)


METHOD = Modpo
