"""Rewarded Soups (arXiv 2306.04488) with DPO: soups of policies trained on all pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vcsoup_dist.methods.method import SoupMethod
from vcsoup_dist.records.keep_rule import KeepRule

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe


class RewardedSoup(SoupMethod):
    """No filter at all."""

    def keep_rule(self, recipe: Recipe) -> KeepRule:
        """Every pair."""
        return KeepRule("all")


METHOD = RewardedSoup
