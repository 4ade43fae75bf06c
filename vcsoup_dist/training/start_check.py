"""What must hold before the first step: the model's log-probs are its own, and its reference's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answers import pack_answers, pack_pairs
from vcsoup_dist.forward.template import Encoded
from vcsoup_dist.recipe import Training
from vcsoup_dist.training.batches import micro_batches
from vcsoup_dist.training.distributed import gather_to_all, local_device
from vcsoup_dist.training.examples import Example
from vcsoup_dist.training.step import Trainer

# Largest per-token |policy - reference| in nats at the start, by dtype: only rounding may differ,
# since a pack of other neighbours takes other kernels.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.5}


def check_forward(engine: Any, tokenizer: Any, training: Training) -> None:
    """Compare our log-probs of a few tokens with those of the model's own logits.

    Called by all ranks together. Raises UserError where they differ by more than rounding: the
    architecture then does something to its logits that is not known here.
    """
    ids = tokenizer("The quick brown fox jumps over the lazy dog.", add_special_tokens=False)
    few = [token for token in ids["input_ids"] if token is not None][:16]
    few = few if len(few) > 1 else [0, 1]
    answers = pack_answers([Encoded(few, 1)], local_device())
    engine.eval()
    with torch.no_grad():
        ours, theirs = engine(answers), engine(answers, by_itself=True)
    apart = float((ours - theirs).abs().max())
    if not apart <= TOLERANCE[training.dtype]:
        raise UserError(
            f"{type(engine.module.model).__name__}: log-probs differ by {apart:.3g} nats from "
            "those of its own logits, to which it does something that is not known here; it is "
            "not supported"
        )


def check_start(trainer: Trainer, batch: Sequence[Example]) -> float:
    """Largest per-token |policy - reference| over the first step's pairs, in nats.

    Called by all ranks together. Raises UserError where it is more than rounding: the reference is
    then of another model, template or data, which the loss alone would hardly show.
    """
    plan = micro_batches(
        [each.tokens for each in batch], dist.get_world_size(), trainer.training.tokens_per_batch
    )
    worst = 0.0
    # In training mode, so that what is random then is found too.
    trainer.engine.train()
    for indices in plan[dist.get_rank()]:
        trainer.watchdog.alive()
        part = [batch[i] for i in indices or [0]]
        answers = pack_pairs([(each.chosen, each.rejected) for each in part], local_device())
        with torch.no_grad():
            policy = trainer.engine(answers).cpu()
        sides = [side for each in part for side in (each.reference_chosen, each.reference_rejected)]
        reference = torch.from_numpy(np.concatenate([side for side in sides if side is not None]))
        apart = float((policy - reference).abs().max())
        worst = max(worst, apart if math.isfinite(apart) else math.inf)
    trainer.watchdog.rest()
    worst = max(gather_to_all(worst))
    if not worst <= TOLERANCE[trainer.training.dtype]:
        raise UserError(
            f"the policy is not its reference at the start: log-probs of a token differ by "
            f"{worst:.3g} nats. Either the reference/ folder of this run is of another model "
            "(remove it), or the model is random in training (a dropout that cannot be switched "
            "off)"
        )
    return worst
