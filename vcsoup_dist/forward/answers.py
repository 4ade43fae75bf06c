"""A causal language model that returns the log-probabilities of answers in a pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.hidden import hidden_states
from vcsoup_dist.forward.logprobs import LogprobHead
from vcsoup_dist.forward.packing import Pack, pack
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
    """Lay conversations end to end."""
    packed = pack([each.ids for each in encoded], device)
    starts = packed.cu_seqlens.tolist()
    predictors = [
        torch.arange(start + each.start - 1, start + len(each.ids) - 1)
        for start, each in zip(starts, encoded, strict=False)
    ]
    targets = [torch.tensor(each.ids[each.start :]) for each in encoded]
    owners = [torch.full((each.answer_length,), i) for i, each in enumerate(encoded)]
    return AnswerPack(
        packed,
        torch.cat(predictors).to(device),
        torch.cat(targets).to(device),
        torch.cat(owners).to(device),
    )


class AnswerLogps(torch.nn.Module):
    """Wraps a transformers causal model; its forward returns fp32 log-probs of answer tokens.

    The whole computation lies inside one forward, as ZeRO-3 needs. The wrapped model keeps its
    parameters and their names (below `model.`), but its head becomes a `LogprobHead`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        for key in (
            "final_logit_softcapping",
            "logits_scaling",
            "logit_scale",
            "output_multiplier",
        ):
            if getattr(config, key, None) not in (None, 1, 1.0):
                raise UserError(
                    f"{type(model).__name__}: `{key}` in its config is not supported yet"
                )
        head = model.get_output_embeddings()
        if not isinstance(head, torch.nn.Linear):
            raise UserError(f"{type(model).__name__}: its output head is no linear layer")
        model.set_output_embeddings(LogprobHead(head))
        self.model = model

    def forward(self, answers: AnswerPack) -> torch.Tensor:
        """Log-prob [A] of every answer token."""
        hidden = hidden_states(self.model, answers.pack)
        head = self.model.get_output_embeddings()
        logps = head(hidden[answers.predictors], answers.targets)
        assert isinstance(logps, torch.Tensor)
        return logps


def sum_per_sequence(logps: torch.Tensor, answers: AnswerPack, sequences: int) -> torch.Tensor:
    """Sum [S] of the log-probs [A] of each sequence's answer, in fp32."""
    totals = torch.zeros(sequences, dtype=torch.float32, device=logps.device)
    return totals.index_add(0, answers.sequence, logps)
