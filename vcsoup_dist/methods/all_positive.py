"""Reward Consistency's rule: soups of policies trained on pairs whose gaps are all positive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from vcsoup_dist.methods.method import SoupMethod
from vcsoup_dist.records.keep_rule import KeepRule

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe


class AllPositive(SoupMethod):
    """Options that are absent are as in `consistency`."""

    min_norm: float | None = Field(None, ge=0)
    """Drop pairs with a shorter gap vector."""

    def keep_rule(self, recipe: Recipe) -> KeepRule:
        """Every reward prefers the chosen answer."""
        min_norm = recipe.consistency.min_norm if self.min_norm is None else self.min_norm
        return KeepRule("all_positive", min_norm=min_norm)


METHOD = AllPositive
