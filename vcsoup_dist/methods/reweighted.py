"""Methods that train one policy per trade-off on the pairs of all values, weighed by it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

from vcsoup_dist.methods.method import Candidate, Method, PairSet, Policy, trade_offs
from vcsoup_dist.records.reweighting import Labels, Reweighting
from vcsoup_dist.souping.grids import soup_name

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe

Weights = tuple[float, ...]


class ReweightedMethod(Method):
    """A policy per trade-off of `reweighting`, each evaluated as it is."""

    budget: Literal["each", "total"] = "each"
    """`each`: every policy takes the steps of one value's policy. `total`: all of them together
    take those of one policy per value, so only so many trade-offs are trained: the corners first,
    then the centre, then the others."""

    @abstractmethod
    def label_kind(self, recipe: Recipe) -> Labels:
        """What a pair's label, margin and weight are made of."""

    def implicit_rewards_of(self, recipe: Recipe) -> str | None:
        """The method instance whose policies give rewards, where it takes implicit ones."""
        return None

    def pairs(self, recipe: Recipe) -> list[PairSet]:
        """None of its own."""
        return []

    def policies(self, recipe: Recipe) -> list[Policy]:
        """One per trade-off."""
        return [
            Policy(
                _name(recipe, weights),
                (),
                None,
                self._reweighting(recipe, weights),
                rewards_of=self.implicit_rewards_of(recipe),
            )
            for weights in self.trade_offs(recipe)
        ]

    def candidates(self, recipe: Recipe) -> list[Candidate]:
        """The policies."""
        return [
            Candidate(weights, (_name(recipe, weights),), is_soup=False)
            for weights in self.trade_offs(recipe)
        ]

    def trade_offs(self, recipe: Recipe) -> list[Weights]:
        """The lambda that it trains a policy for, in ascending order."""
        reachable = [weights for weights in self._asked(recipe) if self.reaches(recipe, weights)]
        if self.budget == "each":
            return reachable
        values = len(recipe.trained_values())
        return sorted(sorted(reachable, key=_placement)[:values])

    def reaches(self, recipe: Recipe, weights: Weights) -> bool:
        """Whether the method is defined there."""
        return True

    def notes(self, recipe: Recipe) -> list[str]:
        """Which trade-offs it trains, where these are not those of `reweighting`."""
        asked, trained = self._asked(recipe), self.trade_offs(recipe)
        if len(trained) == len(asked):
            return []
        shown = ", ".join(_name(recipe, weights) for weights in trained)
        return [f"{len(trained)} of {len(asked)} trade-offs are trained: {shown}"]

    def check(self, recipe: Recipe) -> None:
        """Raises ValueError where the training has another loss."""
        training = recipe.training
        if training.objective != "dpo":
            raise ValueError(f"needs training.objective `dpo`, not `{training.objective}`")
        for key, plain in (("label_smoothing", 0), ("sft_weight", 0), ("pair_weights", "equal")):
            if getattr(training, key) != plain:
                raise ValueError(f"gives pairs labels of its own; take training.{key} out")
        if not self.trade_offs(recipe):
            raise ValueError("reaches none of the trade-offs of `reweighting`")

    def _asked(self, recipe: Recipe) -> list[Weights]:
        asked = trade_offs(recipe)
        if self.budget == "each" or recipe.reweighting.weights is not None:
            return asked
        return [*{*asked, _centre(len(asked[0]))}]

    def _reweighting(self, recipe: Recipe, weights: Weights) -> Reweighting:
        values = recipe.trained_values()
        return Reweighting(
            self.label_kind(recipe),
            dict(zip(values, weights, strict=True)),
            {value: recipe.datasets_of(value) for value in values},
        )


def _name(recipe: Recipe, weights: Weights) -> str:
    return soup_name(dict(zip(recipe.trained_values(), weights, strict=True)))


def _centre(values: int) -> Weights:
    return (1 / values,) * values


def _placement(weights: Weights) -> tuple[bool, float, Weights]:
    """Corners first, the first value's before the others'; then by the distance to the centre."""
    centre = _centre(len(weights))
    distance = sum((a - b) ** 2 for a, b in zip(weights, centre, strict=True))
    return max(weights) != 1, distance if max(weights) != 1 else 0.0, tuple(-w for w in weights)
