"""The DPO loss of every evaluated model on held-out pairs, for the lines between policies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.heldout_logps import HeldoutLogps
from vcsoup_dist.workspace import Product, Workspace

Losses = Mapping[str, NDArray[np.float64]]
"""Value -> the loss [P] of each held-out pair of its own data."""


def heldout_losses(recipe: Recipe, workspace: Workspace, product: Product) -> dict[str, Losses]:
    """By name of the evaluation; of those that have log-probs of held-out pairs."""
    measured = {
        each.name: HeldoutLogps.read(workspace.need(each))
        for each in product.inputs_of("evaluate")
        if each.inputs_of("tokens")
    }
    base = measured.pop("evaluation/base", None)
    if base is None:
        return {}
    datasets = np.array(base.datasets)
    found: dict[str, Losses] = {}
    for name, own in measured.items():
        if (own.ids, own.datasets) != (base.ids, base.datasets):
            raise ValueError(f"{name} has log-probs of other pairs than theta_0")
        losses = dpo_losses(own.logps, base.logps, recipe.training.beta)
        found[name] = {str(each): losses[datasets == each] for each in dict.fromkeys(base.datasets)}
    return found


def dpo_losses(
    logps: NDArray[np.float64], reference: NDArray[np.float64], beta: float
) -> NDArray[np.float64]:
    """-log sigma(beta h) [P], h the log-ratio to theta_0 of the chosen answer less the rejected's.

    logps, reference: [P, 2], of the chosen and the rejected answer.
    """
    ratio = logps - reference
    return np.logaddexp(0.0, -beta * (ratio[:, 0] - ratio[:, 1]))
