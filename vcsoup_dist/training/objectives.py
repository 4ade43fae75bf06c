"""Training objectives as pure functions: log-probs of pairs in, one loss per pair out.

Symbols: pi the policy, ref the reference theta_0, y_w the chosen answer, y_l the rejected;
log pi(y) is the sum over an answer's tokens, |y| their number, and

    h = (log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l)).

To add an objective: write its function here, give it a row in `OBJECTIVES`, and add its name to
`Objective` in recipe/training.py (and to `WITHOUT_REFERENCE`, where it reads no reference).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid, relu

from vcsoup_dist.recipe import Objective, Training


class LossTargets(NamedTuple):
    """What a loss aims at, of one pair or of P: label and margin are then float64 [P]."""

    label: torch.Tensor | float = 1.0
    """p: the probability with which y_w is to be preferred."""
    margin: torch.Tensor | float = 0.0
    """m: what beta h is to exceed."""
    divisor: float = 1.0
    """w > 0: of beta h - m, the same for all pairs of a run."""


PREFERENCES = LossTargets()
"""Of pairs whose chosen answer is to be preferred."""


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of P pairs; every field is float64 [P]."""

    chosen: torch.Tensor
    """log pi(y_w)."""
    rejected: torch.Tensor
    """log pi(y_l)."""
    reference_chosen: torch.Tensor
    """log ref(y_w); zeros for an objective without reference."""
    reference_rejected: torch.Tensor
    """log ref(y_l)."""
    chosen_tokens: torch.Tensor
    """|y_w|."""
    rejected_tokens: torch.Tensor
    """|y_l|."""
    targets: LossTargets = PREFERENCES

    @property
    def ratio_chosen(self) -> torch.Tensor:
        """log pi(y_w) / ref(y_w)."""
        return self.chosen - self.reference_chosen

    @property
    def ratio_rejected(self) -> torch.Tensor:
        """log pi(y_l) / ref(y_l)."""
        return self.rejected - self.reference_rejected


def dpo(pairs: PairLogps, training: Training) -> torch.Tensor:
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z), where z = (beta h - m) / w.

    p = 1, m = 0, w = 1 is Rafailov et al. 2023, eq. 7; p = 1 - eps Mitchell's conservative DPO,
    where eps is `label_smoothing`; reweighting methods give each pair its p and m.
    """
    h = training.beta * (pairs.ratio_chosen - pairs.ratio_rejected)
    p, margin, divisor = pairs.targets
    z = (h - margin) / divisor
    eps = training.label_smoothing
    chosen = p * (1 - eps) + (1 - p) * eps
    rejected = p * eps + (1 - p) * (1 - eps)
    return -chosen * logsigmoid(z) - rejected * logsigmoid(-z)


def robust(pairs: PairLogps, training: Training) -> torch.Tensor:
    """(-(1 - eps) log sigmoid(beta h) + eps log sigmoid(-beta h)) / (1 - 2 eps).

    Chowdhury et al. 2024, rDPO: unbiased where a share eps of the labels is flipped.
    """
    h = training.beta * (pairs.ratio_chosen - pairs.ratio_rejected)
    eps = training.label_smoothing
    return (-(1 - eps) * logsigmoid(h) + eps * logsigmoid(-h)) / (1 - 2 * eps)


def hinge(pairs: PairLogps, training: Training) -> torch.Tensor:
    """max(0, 1 - beta h) (Zhao et al. 2023, SLiC, on DPO's rewards as in Liu et al. 2024, RSO)."""
    return relu(1 - training.beta * (pairs.ratio_chosen - pairs.ratio_rejected))


def ipo(pairs: PairLogps, training: Training) -> torch.Tensor:
    """(h' - 1 / (2 beta))^2, where h' is h with each answer's log-ratio divided by its tokens.

    Azar et al. 2023, eq. 17; the mean over tokens is its authors' own form, and TRL's.
    """
    h = pairs.ratio_chosen / pairs.chosen_tokens - pairs.ratio_rejected / pairs.rejected_tokens
    return (h - 1 / (2 * training.beta)) ** 2


def simpo(pairs: PairLogps, training: Training) -> torch.Tensor:
    """-log sigmoid(beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - gamma).

    Meng et al. 2024, eq. 6. Needs no reference.
    """
    h = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return -logsigmoid(training.beta * h - training.simpo_margin)


def sft(pairs: PairLogps, training: Training) -> torch.Tensor:
    """Negative log-likelihood -log pi(y_w) of the chosen answer, summed over its tokens."""
    return -pairs.chosen


Rewards = tuple[torch.Tensor, torch.Tensor]


def reference_rewards(pairs: PairLogps, training: Training) -> Rewards:
    """beta log pi(y) / ref(y) of chosen and rejected, each [P]."""
    return training.beta * pairs.ratio_chosen, training.beta * pairs.ratio_rejected


def token_rewards(pairs: PairLogps, training: Training) -> Rewards:
    """beta log pi(y) / |y| of chosen and rejected, each [P]."""
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    return training.beta * chosen, training.beta * rejected


@dataclass(frozen=True)
class ObjectiveSpec:
    """A row of `OBJECTIVES`."""

    loss: Callable[[PairLogps, Training], torch.Tensor]
    """Loss [P] of each pair."""
    rewards: Callable[[PairLogps, Training], Rewards] = reference_rewards
    """The implicit rewards that the objective pulls apart; the metrics show them."""
    of_pairs: bool = True
    """Whether it reads rejected answers and is a mean over pairs; else over chosen tokens."""


OBJECTIVES: dict[Objective, ObjectiveSpec] = {
    "dpo": ObjectiveSpec(dpo),
    "robust": ObjectiveSpec(robust),
    "hinge": ObjectiveSpec(hinge),
    "ipo": ObjectiveSpec(ipo),
    "simpo": ObjectiveSpec(simpo, rewards=token_rewards),
    "sft": ObjectiveSpec(sft, of_pairs=False),
}


def step_loss(
    pairs: PairLogps,
    training: Training,
    weights: torch.Tensor,
    step_pairs: int,
    step_chosen_tokens: int,
) -> torch.Tensor:
    """Each pair's part [P] of its step's loss, which is their sum over all ranks.

    The loss is the mean over the step's pairs of weight times loss, plus `sft_weight` times the
    mean over the step's chosen answer tokens of their negative log-likelihood, which no weight
    changes. SFT is that mean alone, weighted.
    """
    objective = OBJECTIVES[training.objective]
    losses = weights * objective.loss(pairs, training)
    if not objective.of_pairs:
        return losses / step_chosen_tokens
    added = training.sft_weight * sft(pairs, training) / step_chosen_tokens
    return losses / step_pairs + added
