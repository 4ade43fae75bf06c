"""DPO on relabelled pairs: the answer with the higher weighted sum of rewards is the chosen one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vcsoup_dist.methods.reweighted import ReweightedMethod
from vcsoup_dist.records.reweighting import Labels

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe


class Relabelled(ReweightedMethod):
    """p = 1 where sum lambda_j g_j > 0, else 0; ties are left out."""

    def label_kind(self, recipe: Recipe) -> Labels:
        """Of the sign of the sum."""
        return "sign"


METHOD = Relabelled
