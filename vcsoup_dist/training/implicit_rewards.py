"""Margins from the implicit rewards of trained policies, as MODPO's safety script takes them.

A policy pi_j that DPO trained on value j's pairs with beta_j is a reward, up to what depends on the
prompt alone: r_j = beta_j log pi_j / pi_0 (Rafailov et al. 2023), already in logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.records.reference import Reference
from vcsoup_dist.records.tokens import TokenFile


@dataclass(frozen=True)
class ImplicitReward:
    """Of the policy of one value."""

    weight: float
    """lambda_j."""
    beta: float
    """With which it was trained."""
    logps: Mapping[str, Reference]
    """Dataset -> log-probs under it."""


@dataclass(frozen=True)
class ImplicitRewards:
    """Of several policies that started from one theta_0."""

    theta_0: Mapping[str, Reference]
    """Dataset -> log-probs under theta_0."""
    policies: Sequence[ImplicitReward]

    def margins(self, tokens: Mapping[str, TokenFile], rows: NDArray[Any]) -> NDArray[np.float64]:
        """m [P] = sum of lambda_j (r_j(chosen) - r_j(rejected)) of P pairs; 0 of unusable ones.

        rows [P]: of `selection.ROW`, whose datasets are places in `tokens`. Chosen is what the row
        says: where it is swapped, the rejected answer of the token file.
        """
        found = np.zeros(len(rows))
        names = list(tokens)
        usable = [each.usable() for each in tokens.values()]
        for place, (dataset, row, swapped, *_) in enumerate(rows.tolist()):
            if not usable[dataset][row]:
                continue
            name = names[dataset]
            file = tokens[name]
            base = _difference(file, self.theta_0[name], row)
            margin = sum(
                each.weight * each.beta * (_difference(file, each.logps[name], row) - base)
                for each in self.policies
            )
            found[place] = 0.0 - margin if swapped else margin
        return found


def _difference(tokens: TokenFile, under: Reference, row: int) -> float:
    """log pi(chosen) - log pi(rejected) of a pair, summed in float64."""
    chosen = tokens.pair(row)[0].answer_length
    logps = under.logps(row).astype(np.float64)
    return float(logps[:chosen].sum() - logps[chosen:].sum())
