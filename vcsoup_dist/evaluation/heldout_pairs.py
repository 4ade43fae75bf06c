"""Log-probs of held-out pairs under a model that generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.logprobs import head_transform, token_logps
from vcsoup_dist.forward.template import Encoded
from vcsoup_dist.records.heldout_logps import HeldoutLogps
from vcsoup_dist.records.tokens import TokenFile


@dataclass(frozen=True)
class HeldoutPair:
    """A held-out pair in tokens."""

    id: str
    dataset: str
    sides: tuple[Encoded, Encoded]
    """The chosen answer and the rejected one, each after the prompt."""


def choose_pairs(tokens: Mapping[str, Path], count: int) -> list[HeldoutPair]:
    """The first `count` usable held-out pairs of each dataset by their id.

    tokens: folder of `tokens/<dataset>` by dataset.
    """
    chosen = []
    for dataset, folder in tokens.items():
        file = TokenFile(folder)
        table = file.table(["id", "unusable"]).slice(file.manifest.train)
        usable = [
            (id_, file.manifest.train + place)
            for place, (id_, unusable) in enumerate(
                zip(table["id"].to_pylist(), table["unusable"].to_pylist(), strict=True)
            )
            if unusable is None
        ]
        for id_, row in sorted(usable)[:count]:
            sides = [Encoded(np.array(each.ids), each.start) for each in file.pair(row)]
            chosen.append(HeldoutPair(id_, dataset, (sides[0], sides[1])))
    return chosen


def heldout_logps(model: Any, pairs: Sequence[HeldoutPair]) -> HeldoutLogps:
    """One sequence at a time, with the attention that the model generates with."""
    logps = [[answer_logp(model, side) for side in pair.sides] for pair in pairs]
    return HeldoutLogps(
        ids=[pair.id for pair in pairs],
        datasets=[pair.dataset for pair in pairs],
        logps=np.array(logps, dtype=np.float64).reshape(-1, 2),
    )


@torch.inference_mode()
def answer_logp(model: Any, encoded: Encoded) -> float:
    """Log-prob of an answer after its prompt under a transformers causal model, in nats.

    UserError for an output head that is not a linear layer.
    """
    head = output_head(model)
    ids = torch.as_tensor(np.asarray(encoded.ids), dtype=torch.int64, device=model.device)
    hidden = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    before = hidden[encoded.start - 1 : -1].to(head.weight.device)
    targets = ids[encoded.start :].to(head.weight.device)
    logps = token_logps(before, head.weight, head.bias, targets, head_transform(model.config))
    return float(logps.double().sum())


def output_head(model: Any) -> torch.nn.Linear:
    """The head of a causal model; UserError where it is not a linear layer."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise UserError(f"{type(model).__name__}: its output head is not a linear layer")
    return head
