"""The control of a filter: soups of policies trained on as many pairs as it keeps, at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vcsoup_dist.methods.method import PairSet, SoupMethod
from vcsoup_dist.methods.vc_soup import VCSoup
from vcsoup_dist.records.keep_rule import KeepRule

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe


class Random(SoupMethod):
    """A random subset of the size of another method's."""

    size_of: str | None = None
    """Method instance of the kind `vc_soup` whose size it copies; absent: the first of them."""

    def check(self, recipe: Recipe) -> None:
        """Raises ValueError where there is nothing to copy."""
        self._copied(recipe)

    def keep_rule(self, recipe: Recipe) -> KeepRule:
        """As many as the other, among the pairs that it could keep."""
        _, copied = self._copied(recipe)
        return KeepRule("as_many_as", min_norm=copied.keep_rule(recipe).min_norm)

    def pairs(self, recipe: Recipe) -> list[PairSet]:
        """One set per trained value, with the other's set to copy."""
        name, _ = self._copied(recipe)
        rule = self.keep_rule(recipe)
        return [PairSet(value, value, rule, name) for value in recipe.trained_values()]

    def _copied(self, recipe: Recipe) -> tuple[str, VCSoup]:
        for name, method in recipe.methods.items():
            if isinstance(method, VCSoup) and self.size_of in (None, name):
                return name, method
        missing = f"`{self.size_of}`" if self.size_of else "`vc_soup`"
        raise ValueError(f"copies the size of {missing}, a method of kind `vc_soup`; list it too")


METHOD = Random
