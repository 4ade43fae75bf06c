"""Log-probs of answers under a model that generates, by the packed forward of `forward/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vcsoup_dist.evaluation.heldout_pairs import answer_logp, output_head
from vcsoup_dist.forward.answers import pack_answers, sum_per_sequence
from vcsoup_dist.forward.attention import choose_attention
from vcsoup_dist.forward.hidden import can_pack, hidden_states, longest_together
from vcsoup_dist.forward.logprobs import head_transform, token_logps
from vcsoup_dist.forward.packing import budget_batches
from vcsoup_dist.forward.template import Encoded

TOKENS_PER_PACK = 8192
"""A constant: what is packed together decides the last bits on a GPU and a CPU alike."""


def answer_logps(model: Any, answers: Sequence[Encoded]) -> NDArray[np.float64]:
    """Log-prob [P] of each answer after its prompt, in nats, at temperature 1.

    In packs that follow from the answers' lengths alone; one by one where the model's attention
    cannot be replaced. UserError for an output head that is not a linear layer.
    """
    logps = np.zeros(len(answers))
    if not can_pack(model):
        return np.array([answer_logp(model, each) for each in answers], dtype=np.float64)
    with _packed_attention(model), torch.inference_mode():
        for part in _packs(model, answers):
            logps[part] = _pack_logps(model, [answers[i] for i in part])
    return logps


def _packs(model: Any, answers: Sequence[Encoded]) -> list[list[int]]:
    """Indices of the answers of each pack; too long to share a forward are those by themselves."""
    lengths = [len(each.ids) for each in answers]
    limit = longest_together(model.config)
    alone = [i for i, length in enumerate(lengths) if limit is not None and length > limit]
    shared = [i for i in range(len(lengths)) if i not in set(alone)]
    batches = budget_batches([lengths[i] for i in shared], TOKENS_PER_PACK)
    return [[shared[i] for i in batch] for batch in batches] + [[i] for i in alone]


def _pack_logps(model: Any, answers: Sequence[Encoded]) -> NDArray[np.float64]:
    head = output_head(model)
    packed = pack_answers(answers, model.device)
    before = hidden_states(model, packed.pack)[packed.predictors].to(head.weight.device)
    targets = packed.targets.to(head.weight.device)
    logps = token_logps(before, head.weight, head.bias, targets, head_transform(model.config))
    sums = sum_per_sequence(logps.to(packed.sequence.device), packed, len(answers))
    return np.asarray(sums.cpu().numpy(), dtype=np.float64)


@contextmanager
def _packed_attention(model: Any) -> Iterator[None]:
    """The model with an attention over packs, in place of the one that it generates with."""
    own = model.config._attn_implementation
    model.set_attn_implementation(choose_attention("auto", model.device, model.dtype, model.config))
    try:
        yield
    finally:
        model.set_attn_implementation(own)
