"""DPO with loss weighting (DPO-LW): the values' DPO losses, weighted by the trade-off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vcsoup_dist.methods.reweighted import ReweightedMethod
from vcsoup_dist.records import reweighting

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe


class LossWeighting(ReweightedMethod):
    """sum lambda_j L_j, where L_j is the DPO loss under value j's labels."""

    labels: Literal["all", "own"] = "all"
    """`all`: every value labels every pair, which is one loss of the soft label p = sum lambda_j
    1[g_j > 0], a tie counting one half. `own`: every value labels its own pairs."""

    def label_kind(self, recipe: Recipe) -> reweighting.Labels:
        """As `labels` says."""
        return "votes" if self.labels == "all" else "own"


METHOD = LossWeighting
