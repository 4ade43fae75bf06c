"""Training objectives as pure functions: log-probs in, one loss per pair out."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def dpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7), label-smoothed (cDPO).

    All arguments are fp32 sums [P] of an answer's log-probs; so is the result, the loss per pair:
    -(1 - eps) log sigmoid(h) - eps log sigmoid(-h),
    h = beta ((chosen - reference_chosen) - (rejected - reference_rejected)).
    """
    h = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)


def sft(chosen: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood [P] of the chosen answers, from the sums [P] of their log-probs."""
    return -chosen
