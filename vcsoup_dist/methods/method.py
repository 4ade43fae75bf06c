"""What a method says of itself: the pairs it trains on, its policies, its candidate models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vcsoup_dist.recipe.method import MethodOptions
from vcsoup_dist.records.in_context import AskedScores, ScorePrompt
from vcsoup_dist.records.keep_rule import KeepRule
from vcsoup_dist.records.reweighting import Reweighting
from vcsoup_dist.souping.grids import box_grid, simplex_grid

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe


@dataclass(frozen=True)
class PairSet:
    """`filtered/<method>/<name>`: the pairs of one value's datasets that a rule keeps."""

    name: str
    value: str
    rule: KeepRule
    size_of: str | None = None
    """Method instance whose set of the same name has the size that `as_many_as` keeps."""


@dataclass(frozen=True)
class Policy:
    """`policies/<method>/<name>/seed-<s>`: one model to train, once per seed."""

    name: str
    pairs: tuple[str, ...]
    """Names of the pair sets that it is trained on."""
    value: str | None
    """The value that it is trained for; None where it is for a trade-off."""
    reweighting: Reweighting | None = None
    """How it weighs the pairs of all values, in place of pair sets."""
    rewards_of: str | None = None
    """Method instance whose values' policies give the implicit rewards that `reweighting` takes."""
    scores: ScorePrompt | None = None
    """How its prompts say the scores of the answers of all values' pairs, in place of pair sets."""

    @property
    def reads_union(self) -> bool:
        """Whether it is trained on the pairs of all values."""
        return self.reweighting is not None or self.scores is not None


@dataclass(frozen=True)
class Candidate:
    """A model that is evaluated as the method's answer to one trade-off."""

    weights: tuple[float, ...]
    """lambda over the trained values."""
    policies: tuple[str, ...]
    """Names of the policies that it is made of."""
    is_soup: bool = True
    """Whether it is their sum with `weights`, or the one policy itself."""
    asked: AskedScores | None = None
    """What its prompts ask for, where they do."""


class Method(MethodOptions, ABC):
    """One kind of method; its fields are the options of an instance."""

    @abstractmethod
    def pairs(self, recipe: Recipe) -> list[PairSet]:
        """What it trains on."""

    @abstractmethod
    def policies(self, recipe: Recipe) -> list[Policy]:
        """What it trains."""

    @abstractmethod
    def candidates(self, recipe: Recipe) -> list[Candidate]:
        """What of it is evaluated."""


class SoupMethod(Method):
    """A policy per value, and their soups at the recipe's weights; kinds differ in the pairs."""

    @abstractmethod
    def keep_rule(self, recipe: Recipe) -> KeepRule:
        """Which pairs of each value it trains on."""

    def pairs(self, recipe: Recipe) -> list[PairSet]:
        """One set per trained value."""
        rule = self.keep_rule(recipe)
        return [PairSet(value, value, rule) for value in recipe.trained_values()]

    def policies(self, recipe: Recipe) -> list[Policy]:
        """One per trained value."""
        return [Policy(value, (value,), value) for value in recipe.trained_values()]

    def candidates(self, recipe: Recipe) -> list[Candidate]:
        """A soup of all of them for each of the recipe's weights."""
        policies = tuple(recipe.trained_values())
        return [Candidate(weights, policies) for weights in soup_weights(recipe)]


def soup_weights(recipe: Recipe) -> list[tuple[float, ...]]:
    """lambda over the trained values of every soup that `soup` asks for."""
    values, box = len(recipe.trained_values()), recipe.soup.box
    if recipe.soup.weights is not None:
        return [tuple(row) for row in recipe.soup.weights]
    if box is not None:
        return box_grid(values, box[0], box[1], recipe.soup.step)
    return simplex_grid(values, recipe.soup.step)


def trade_offs(recipe: Recipe) -> list[tuple[float, ...]]:
    """lambda over the trained values of every trade-off that `reweighting` asks for."""
    if recipe.reweighting.weights is not None:
        return [tuple(row) for row in recipe.reweighting.weights]
    return simplex_grid(len(recipe.trained_values()), recipe.reweighting.grid)
