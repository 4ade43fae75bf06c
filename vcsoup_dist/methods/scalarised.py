"""DPO on soft labels of scalarised rewards, the offline counterpart of KL-regularised MORLHF."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vcsoup_dist.methods.reweighted import ReweightedMethod
from vcsoup_dist.records.reweighting import Labels

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe


class Scalarised(ReweightedMethod):
    """p = sigmoid(sum lambda_j a_j Dr_j), whose optimum is beta h = sum lambda_j a_j Dr_j."""

    def label_kind(self, recipe: Recipe) -> Labels:
        """Logits of the sum."""
        return "logits"


METHOD = Scalarised
