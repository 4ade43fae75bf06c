"""Training objectives as pure functions: log-probs of pairs in, one loss per pair out.

Symbols: pi the policy, ref the reference theta_0, y_w the chosen answer, y_l the rejected;
log pi(y) is the sum over an answer's tokens, |y| their number, and

    h = (log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid, relu

from vcsoup_dist.recipe import Objective, Training


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

    @property
    def ratio_chosen(self) -> torch.Tensor:
        """log pi(y_w) / ref(y_w)."""
        return self.chosen - self.reference_chosen

    @property
    def ratio_rejected(self) -> torch.Tensor:
        """log pi(y_l) / ref(y_l)."""
        return self.rejected - self.reference_rejected


def dpo(pairs: PairLogps, training: Training) -> torch.Tensor:
    """-(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h).

    Rafailov et al. 2023, eq. 7; with eps = `label_smoothing` > 0 Mitchell's conservative DPO.
    """
    h = training.beta * (pairs.ratio_chosen - pairs.ratio_rejected)
    eps = training.label_smoothing
    return -(1 - eps) * logsigmoid(h) - eps * logsigmoid(-h)


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


LOSSES: dict[Objective, Callable[[PairLogps, Training], torch.Tensor]] = {
    "dpo": dpo,
    "robust": robust,
    "hinge": hinge,
    "ipo": ipo,
    "simpo": simpo,
    "sft": sft,
}


def rewards(pairs: PairLogps, training: Training) -> tuple[torch.Tensor, torch.Tensor]:
    """What the objective takes for the rewards [P] of chosen and rejected: beta log pi / ref, and
    for SimPO beta times the mean log-prob of a token."""
    if training.objective == "simpo":
        chosen, rejected = (
            pairs.chosen / pairs.chosen_tokens,
            pairs.rejected / pairs.rejected_tokens,
        )
    else:
        chosen, rejected = pairs.ratio_chosen, pairs.ratio_rejected
    return training.beta * chosen, training.beta * rejected


def step_loss(
    pairs: PairLogps,
    training: Training,
    weights: torch.Tensor,
    step_pairs: int,
    step_chosen_tokens: int,
) -> torch.Tensor:
    """What each of P pairs adds to the loss of its step, [P]: their sum over all ranks is the loss.

    The mean over the step's pairs of weight times loss, and `sft_weight` times the mean over the
    step's chosen answer tokens of their negative log-likelihood, which no weight changes; SFT is
    that mean alone, weighted.
    """
    losses = weights * LOSSES[training.objective](pairs, training)
    if training.objective == "sft":
        return losses / step_chosen_tokens
    added = training.sft_weight * sft(pairs, training) / step_chosen_tokens
    return losses / step_pairs + added
