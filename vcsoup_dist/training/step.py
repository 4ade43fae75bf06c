"""One optimizer step over all ranks, and the same forward over held-out pairs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answers import AnswerPack, pack_answers, pack_pairs, sum_per_sequence
from vcsoup_dist.forward.packing import to_device
from vcsoup_dist.recipe import Training
from vcsoup_dist.training.batches import micro_batches
from vcsoup_dist.training.distributed import gather_to_all, local_device, sum_over_ranks
from vcsoup_dist.training.examples import Example
from vcsoup_dist.training.flops import FlopCounter
from vcsoup_dist.training.metrics import peak_memory_gib
from vcsoup_dist.training.objectives import PairLogps, rewards, step_loss
from vcsoup_dist.training.offload import offload_activations
from vcsoup_dist.training.watchdog import Watchdog

SUMS = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "kl_estimate")


@dataclass(frozen=True)
class Trainer:
    """What all steps share on this rank."""

    engine: Any
    training: Training
    flops: FlopCounter | None
    """None where no MFU is reckoned."""
    peak_flops: float
    """Of one device per second."""
    watchdog: Watchdog


def take_step(trainer: Trainer, batch: Sequence[Example], learning_rate: float) -> dict[str, float]:
    """One optimizer step on `batch`; returns its metrics.

    What is summed over pairs is the same on every rank; seconds, rates and memory are this rank's.

    The loss is divided by the step's pairs (SFT: chosen answer tokens) over all ranks, so that
    neither the micro-batches nor the world size change the gradient. Raises UserError with the ids
    of pairs where the loss or the gradient is not finite.
    """
    began = time.monotonic()
    engine, training = trainer.engine, trainer.training
    engine.train()
    mine = _my_micro_batches(batch, training)
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=local_device())
    flops = torch.zeros(1, dtype=torch.float64, device=local_device())
    seen: list[tuple[list[Example], torch.Tensor]] = []
    for number, indices in enumerate(mine):
        trainer.watchdog.alive()
        last = number == len(mine) - 1
        engine.set_gradient_accumulation_boundary(last)
        # An empty micro-batch runs the step's first pair with weight 0.
        part = [batch[i] for i in indices or [0]]
        with offload_activations(training.activation_offload):
            pairs, answers = forward_pairs(engine, training, part)
            losses = step_loss(pairs, training, _weights(part), *_divisors(batch))
        if indices:
            sums += _sums(losses, pairs, training)
            if trainer.flops:
                flops += trainer.flops.of(answers)
            seen.append((part, losses.detach()))
        # DeepSpeed averages over ranks; this undoes it.
        engine.backward(losses.sum() * (dist.get_world_size() if indices else 0.0))
        if last:
            for group in engine.optimizer.param_groups:
                group["lr"] = learning_rate
        engine.step()
    *totals, computed = sum_over_ranks(torch.cat([sums, flops]).cpu()).tolist()
    grad_norm = float(engine.get_global_grad_norm())
    if not math.isfinite(totals[0]) or not math.isfinite(grad_norm):
        broken = [id_ for part, losses in seen for id_ in _not_finite(losses, part)]
        _refuse_step(batch, broken, totals[0], grad_norm)
    seconds = time.monotonic() - began
    trainer.watchdog.rest()
    world = dist.get_world_size()
    metrics = _metrics(totals, len(batch), training) | {
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
        "step_seconds": seconds,
        "tokens_per_second": sum(_all_tokens(each, training) for each in batch) / seconds / world,
        "peak_memory_gib": peak_memory_gib(),
    }
    if trainer.flops:
        metrics["mfu"] = computed / seconds / world / trainer.peak_flops
    return metrics


def evaluate(trainer: Trainer, heldout: Sequence[Example]) -> dict[str, float]:
    """Loss, accuracy and margin over the held-out pairs; nothing where there are none."""
    if not heldout:
        return {}
    engine, training = trainer.engine, trainer.training
    engine.eval()
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=local_device())
    for indices in _my_micro_batches(heldout, training):
        trainer.watchdog.alive()
        part = [heldout[i] for i in indices or [0]]
        with torch.no_grad():
            pairs, _ = forward_pairs(engine, training, part)
            losses = step_loss(pairs, training, torch.ones_like(pairs.chosen), *_divisors(heldout))
        if indices:
            sums += _sums(losses, pairs, training)
    trainer.watchdog.rest()
    metrics = _metrics(sum_over_ranks(sums.cpu()).tolist(), len(heldout), training)
    kept = ("loss", "accuracy", "margin")
    return {f"heldout_{name}": metrics[name] for name in kept if name in metrics}


def forward_pairs(
    engine: Any, training: Training, batch: Sequence[Example]
) -> tuple[PairLogps, AnswerPack]:
    """Log-probs of the pairs under the policy, beside the reference's; and what was computed."""
    device = local_device()
    if training.objective == "sft":
        answers = pack_answers([each.chosen for each in batch], device)
        chosen = sum_per_sequence(engine(answers), answers, len(batch))
        rejected = torch.zeros_like(chosen)
    else:
        answers = pack_pairs([(each.chosen, each.rejected) for each in batch], device)
        sums = sum_per_sequence(engine(answers), answers, 2 * len(batch))
        chosen, rejected = sums[0::2], sums[1::2]

    def known(values: list[float]) -> torch.Tensor:
        return to_device(np.array(values), torch.float64, device)

    return (
        PairLogps(
            chosen,
            rejected,
            known([_total(each.reference_chosen) for each in batch]),
            known([_total(each.reference_rejected) for each in batch]),
            known([each.chosen.answer_length for each in batch]),
            known([each.rejected.answer_length for each in batch]),
        ),
        answers,
    )


def cost(example: Example, training: Training) -> int:
    """Tokens that an example puts into a forward."""
    return len(example.chosen.ids) if training.objective == "sft" else example.tokens


def _all_tokens(example: Example, training: Training) -> int:
    """Tokens of the example's sequences, each with its prompt, as other trainers count them."""
    rejected = 0 if training.objective == "sft" else len(example.rejected.ids)
    return len(example.chosen.ids) + rejected


def _my_micro_batches(examples: Sequence[Example], training: Training) -> list[list[int]]:
    costs = [cost(each, training) for each in examples]
    return micro_batches(costs, dist.get_world_size(), training.tokens_per_batch)[dist.get_rank()]


def _weights(batch: Sequence[Example]) -> torch.Tensor:
    return to_device(np.array([each.weight for each in batch]), torch.float64, local_device())


def _divisors(batch: Sequence[Example]) -> tuple[int, int]:
    """Pairs, and chosen answer tokens, of a whole step."""
    return len(batch), sum(each.chosen.answer_length for each in batch)


def _sums(losses: torch.Tensor, pairs: PairLogps, training: Training) -> torch.Tensor:
    """Sums over pairs of `SUMS`."""
    with torch.no_grad():
        chosen, rejected = rewards(pairs, training)
        margin = chosen - rejected
        kl = (pairs.ratio_chosen + pairs.ratio_rejected) / 2
        parts = (losses, (margin > 0).double(), margin, chosen, rejected, kl)
        return torch.stack([part.sum() for part in parts])


def _metrics(totals: Sequence[float], pairs: int, training: Training) -> dict[str, float]:
    """Means by name, of those that the objective has; the loss is divided already."""
    named = {name: total / pairs for name, total in zip(SUMS, totals, strict=True)}
    named["loss"] = totals[0]
    if training.objective == "sft":
        return {"loss": named["loss"]}
    if training.objective == "simpo":
        del named["kl_estimate"]
    return named


def _not_finite(losses: torch.Tensor, batch: Sequence[Example]) -> list[str]:
    finite = torch.isfinite(losses).tolist()
    return [each.id for each, fine in zip(batch, finite, strict=True) if not fine]


def _refuse_step(
    batch: Sequence[Example], broken: list[str], loss: float, grad_norm: float
) -> None:
    guilty = [id_ for share in gather_to_all(broken) for id_ in share]
    ids = ", ".join(guilty or [each.id for each in batch])
    raise UserError(
        f"the loss is {loss}, the gradient's norm {grad_norm}; "
        f"{'the pairs whose loss it is' if guilty else 'the pairs of this step'}: {ids}"
    )


def _total(logps: np.ndarray | None) -> float:
    return 0.0 if logps is None else float(logps.astype(np.float64).sum())
