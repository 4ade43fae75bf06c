"""Checks on the ranks before the first step.

- `check_forward`: our log-probs are those of the model's own logits.
- `check_start`: the policy is its reference, token by token, and the first loss is the objective's.
- `chance_warning`: without a reference, the base knows more than chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answers import pack_answers, pack_pairs
from vcsoup_dist.forward.template import Encoded
from vcsoup_dist.recipe import WITHOUT_REFERENCE, Training
from vcsoup_dist.training.batches import micro_batches
from vcsoup_dist.training.distributed import any_rank, gather_to_all, local_device
from vcsoup_dist.training.examples import Example, targets_of
from vcsoup_dist.training.objectives import OBJECTIVES, PREFERENCES, LossTargets, PairLogps
from vcsoup_dist.training.runtime import Runtime

TOLERANCE = {"fp32": 1e-3, "bf16": 0.5}
"""Largest per-token |policy - reference| in nats, by dtype. Only rounding may differ: another pack
takes other kernels."""
MEAN_TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""The same of the mean over all tokens."""
DRIFT_TOLERANCE = {"fp32": 1e-5, "bf16": 0.01}
"""Of the mean drift per token: rounding has no direction."""

REASONS = (
    "Either the reference/ folder of this run is of another model (remove it), or the model is "
    "random in training (a dropout that cannot be switched off)"
)


def check_forward(runtime: Runtime) -> None:
    """Compare our log-probs of a few tokens with those of the model's own logits.

    Called by all ranks together. UserError where they differ by more than rounding: the
    architecture then transforms its logits in a way that `forward` does not know.
    """
    engine, dtype, tokenizer = runtime.engine, runtime.training.dtype, runtime.tokenizer
    ids = tokenizer("The quick brown fox jumps over the lazy dog.", add_special_tokens=False)
    few = [token for token in ids["input_ids"] if token is not None][:16]
    few = few if len(few) > 1 else [0, 1]
    answers = pack_answers([Encoded(few, 1)], local_device())
    engine.eval()
    with torch.no_grad():
        ours, theirs = engine(answers), engine(answers, by_itself=True)
    if any_rank(not bool(torch.isfinite(theirs).all())):  # each may have weights of its own
        raise UserError(_not_finite(runtime.model))
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE[dtype]:
        raise UserError(
            f"{type(runtime.model).__name__}: log-probs differ by {difference:.3g} nats "
            "from those of its own logits, which it transforms in an unknown way; it is not "
            "supported"
        )


def _not_finite(model: Any) -> str:
    """Which tensors of a sharded model make its log-probs NaN. Called by all ranks together."""
    mine = [
        name
        for name, parameter in model.named_parameters()
        if not bool(torch.isfinite(getattr(parameter, "ds_tensor", parameter)).all())
    ]
    names = list(dict.fromkeys(name for share in gather_to_all(mine) for name in share))
    where = model.config.name_or_path
    if not names:
        return f"{where}: its log-probs are not finite in this dtype; take another training.dtype"
    more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return (
        f"{where}: its weights hold NaN or infinity in {names[0]}{more}; download it again, or "
        "take an earlier checkpoint"
    )


def check_start(runtime: Runtime, batch: Sequence[Example]) -> float:
    """Largest per-token |policy - reference| over the first step's pairs, in nats.

    Called by all ranks together. UserError where it is more than rounding: the reference is then of
    another model, template or data, which the loss alone would hardly show. UserError also where
    the differences are small but agree, so that the first loss is not the objective's.
    """
    training = runtime.training
    plan = micro_batches(
        [each.tokens for each in batch], dist.get_world_size(), training.tokens_per_batch
    )
    worst = 0.0
    mine: list[Drift] = []
    # In training mode, so that what is random then is found too.
    runtime.engine.train()
    for indices in plan[dist.get_rank()]:
        runtime.watchdog.alive()
        part = [batch[i] for i in indices or [0]]
        answers = pack_pairs([(each.chosen, each.rejected) for each in part], local_device())
        with torch.no_grad():
            policy = runtime.engine(answers).cpu()
        sides = [side for each in part for side in (each.reference_chosen, each.reference_rejected)]
        reference = torch.from_numpy(np.concatenate([side for side in sides if side is not None]))
        difference = float((policy - reference).abs().max())
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
        if indices:
            lengths = [each.answer_length for pair in part for each in (pair.chosen, pair.rejected)]
            mine += drifts(
                policy.double(), reference.double(), lengths, training, targets_of(part, "cpu")
            )
    runtime.watchdog.rest()
    worst = max(gather_to_all(worst))
    if not worst <= TOLERANCE[training.dtype]:
        raise UserError(
            f"the policy is not its reference at the start: log-probs of a token differ by "
            f"{worst:.3g} nats. {REASONS}"
        )
    if fault := first_loss_fault([d for share in gather_to_all(mine) for d in share], training):
        raise UserError(f"the policy is not its reference at the start: {fault}. {REASONS}")
    return worst


class Drift(NamedTuple):
    """How far a pair's log-probs are from its reference's."""

    tokens: int
    absolute: float
    """Sum over the tokens of |policy - reference|."""
    h: float
    """Log-ratio of chosen minus that of rejected: 0 where policy and reference agree."""
    loss: float
    theory: float
    """The loss at h = 0, which the objective and its settings alone decide."""


def drifts(
    policy: torch.Tensor,
    reference: torch.Tensor,
    lengths: Sequence[int],
    training: Training,
    targets: LossTargets = PREFERENCES,
) -> list[Drift]:
    """Of P pairs; policy, reference: float64 log-probs [A] of chosen and rejected in turn, of
    which `lengths` [2 P] has the numbers of tokens."""
    parts = torch.stack(
        [
            torch.stack([side.sum() for side in torch.split(each, list(lengths))])
            for each in (policy, reference, (policy - reference).abs())
        ]
    )
    tokens = torch.tensor(lengths, dtype=torch.float64)
    (pi, ref, absolute), even, odd = parts, slice(0, None, 2), slice(1, None, 2)

    def losses(logps: torch.Tensor) -> torch.Tensor:
        sides = (logps[even], logps[odd], ref[even], ref[odd], tokens[even], tokens[odd])
        pairs = PairLogps(*sides, targets)
        return OBJECTIVES[training.objective].loss(pairs, training)

    h = (pi - ref)[even] - (pi - ref)[odd]
    columns = (
        tokens[even] + tokens[odd],
        absolute[even] + absolute[odd],
        h,
        losses(pi),
        losses(ref),
    )
    return [Drift(int(row[0]), *row[1:]) for row in torch.stack(columns, 1).tolist()]


def first_loss_fault(pairs: Sequence[Drift], training: Training) -> str | None:
    """What is wrong with the first loss; None where it is the objective's but for rounding."""
    if not pairs:
        return None
    tokens = sum(each.tokens for each in pairs)
    mean = sum(each.absolute for each in pairs) / tokens
    h = np.array([each.h for each in pairs])
    drift = abs(float(h.mean()))
    noise = 3 * float(h.std()) / math.sqrt(len(h))
    allowed = DRIFT_TOLERANCE[training.dtype] * tokens / len(h) + noise
    if mean <= MEAN_TOLERANCE[training.dtype] and drift <= allowed:
        return None
    loss, theory = (
        sum(getattr(each, name) for each in pairs) / len(pairs) for name in ("loss", "theory")
    )
    return (
        f"the first loss is {loss:.4f}, where {training.objective} starts at {theory:.4f}; "
        f"log-probs of a token differ by {mean:.3g} nats on average"
    )


def chance_warning(
    measured: Mapping[str, float], training: Training, vocabulary: int
) -> str | None:
    """A warning where a first step without a reference shows a model that knows only chance."""
    if training.objective not in WITHOUT_REFERENCE:
        return None
    of_pairs = OBJECTIVES[training.objective].of_pairs
    nats = -measured["chosen_reward"] / training.beta if of_pairs else measured["loss"]
    if nats < 0.98 * math.log(vocabulary):
        return None
    return (
        f"the chosen answers of the first step cost {nats:.2f} nats a token, as much as guessing "
        f"among {vocabulary} tokens ({math.log(vocabulary):.2f}); are the base's weights whole?"
    )
