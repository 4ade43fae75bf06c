"""A causal language model that returns the log-probabilities of answers in a pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.hidden import hidden_states, pack_arguments
from vcsoup_dist.forward.logprobs import LogprobHead, head_transform
from vcsoup_dist.forward.packing import Branch, Pack, common_prefix, pack_branches, to_device
from vcsoup_dist.forward.template import Encoded


@dataclass(frozen=True)
class AnswerPack:
    """A pack of conversations, and which of its tokens are answers (A in all)."""

    pack: Pack
    predictors: torch.Tensor
    """[A] int64: position in the pack of the token before each answer token."""
    targets: torch.Tensor
    """[A] int64: the answer tokens."""
    sequence: torch.Tensor
    """[A] int64: to which of the S sequences each answer token belongs."""


def pack_answers(encoded: Sequence[Encoded], device: torch.device | str = "cpu") -> AnswerPack:
    """Lay conversations end to end, each by itself."""
    return _pack(encoded, [Branch(each.ids) for each in encoded], device)


def pack_pairs(
    pairs: Sequence[tuple[Encoded, Encoded]], device: torch.device | str = "cpu"
) -> AnswerPack:
    """Lay pairs end to end, first and second in turn; a pair's common prefix is laid down once.

    For preference pairs that is the prompt: its hidden states serve both answers, and gradients of
    both flow into them.
    """
    encoded: list[Encoded] = []
    branches: list[Branch] = []
    for first, second in pairs:
        branches += [
            Branch(first.ids),
            Branch(second.ids, len(branches), common_prefix(first.ids, second.ids)),
        ]
        encoded += [first, second]
    return _pack(encoded, branches, device)


def pair_tokens(first: Encoded, second: Encoded) -> int:
    """Tokens that `pack_pairs` lays down for one pair."""
    return len(first.ids) + len(second.ids) - common_prefix(first.ids, second.ids)


def _pack(
    encoded: Sequence[Encoded], branches: Sequence[Branch], device: torch.device | str
) -> AnswerPack:
    packed = pack_branches(branches, device)
    ends = np.cumsum([0, *(len(each.ids) - each.shared for each in branches)])
    predictors = []
    for s, (each, branch) in enumerate(zip(encoded, branches, strict=True)):
        before = np.arange(each.start - 1, len(each.ids) - 1)
        own = ends[s] - branch.shared
        predictors.append(before + np.where(before < branch.shared, ends[branch.of], own))
    targets = [np.asarray(each.ids)[each.start :] for each in encoded]
    owners = np.repeat(np.arange(len(encoded)), [each.answer_length for each in encoded])

    return AnswerPack(
        packed,
        to_device(np.concatenate(predictors), torch.int64, device),
        to_device(np.concatenate(targets), torch.int64, device),
        to_device(owners, torch.int64, device),
    )


class AnswerLogps(torch.nn.Module):
    """Wraps a transformers causal model; its forward returns fp32 log-probs of answer tokens.

    The whole computation is one forward, as ZeRO-3 needs. The wrapped model keeps its
    parameters and their names (below `model.`), but its head becomes a `LogprobHead`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        transform = head_transform(model.config)
        head = model.get_output_embeddings()
        if not isinstance(head, torch.nn.Linear):
            raise UserError(f"{type(model).__name__}: its output head is not a linear layer")
        model.set_output_embeddings(LogprobHead(head, transform))
        self.model = model

    def forward(self, answers: AnswerPack, by_itself: bool = False) -> torch.Tensor:
        """Log-prob [A] of every answer token.

        by_itself: from all of the model's own logits; slow and large, to check that this class
        transforms them as the model does.
        """
        if by_itself:
            logits = self.model(**pack_arguments(answers.pack)).logits[0, answers.predictors]
            every = logits.float().log_softmax(dim=-1)
            logps = every.gather(1, answers.targets[:, None])[:, 0]
        else:
            hidden = hidden_states(self.model, answers.pack)
            head = self.model.get_output_embeddings()
            logps = head(hidden[answers.predictors], answers.targets)
        assert isinstance(logps, torch.Tensor)
        return logps


def sum_per_sequence(logps: torch.Tensor, answers: AnswerPack, sequences: int) -> torch.Tensor:
    """Sum [S] of the log-probs [A] of each sequence's answer, in float64.

    In fp32 the sum over a few hundred tokens is off by 1e-4 nats, which costs nothing to avoid.
    """
    totals = torch.zeros(sequences, dtype=torch.float64, device=logps.device)
    return totals.index_add(0, answers.sequence, logps.double())
