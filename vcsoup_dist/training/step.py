"""One optimizer step over all ranks, and the same forward over held-out pairs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answers import AnswerPack, pack_answers, pack_pairs, sum_per_sequence
from vcsoup_dist.forward.packing import to_device
from vcsoup_dist.recipe import WITHOUT_REFERENCE, Training
from vcsoup_dist.training.batches import micro_batches
from vcsoup_dist.training.distributed import gather_to_all, local_device, sum_over_ranks
from vcsoup_dist.training.examples import Example, targets_of
from vcsoup_dist.training.flops import FlopCounter
from vcsoup_dist.training.metrics import peak_memory_gib
from vcsoup_dist.training.objectives import OBJECTIVES, PairLogps, step_loss
from vcsoup_dist.training.offload import offload_activations
from vcsoup_dist.training.runtime import Runtime

PAIR_METRICS = ("loss", "accuracy", "margin")
SUMS = (*PAIR_METRICS, "chosen_reward", "rejected_reward", "kl_estimate")


def take_step(
    runtime: Runtime, batch: Sequence[Example], learning_rate: float, flops: FlopCounter | None
) -> dict[str, float]:
    """One optimizer step on `batch`; returns its metrics. Called by all ranks together.

    flops: None where no MFU is computed. Sums over pairs are the same on every rank; seconds, rates
    and memory are this rank's.

    The loss is divided by the step's pairs (SFT: chosen answer tokens) over all ranks, so that
    neither the micro-batches nor the world size change the gradient. Raises UserError with the ids
    of pairs where the loss or the gradient is not finite.
    """
    began = time.monotonic()
    engine, training = runtime.engine, runtime.training
    engine.train()
    mine = _my_micro_batches(batch, training)
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=local_device())
    computed = torch.zeros(1, dtype=torch.float64, device=local_device())
    seen: list[tuple[list[Example], torch.Tensor]] = []
    for number, indices in enumerate(mine):
        runtime.watchdog.alive()
        last = number == len(mine) - 1
        engine.set_gradient_accumulation_boundary(last)
        # An empty micro-batch runs the step's first pair with weight 0.
        part = [batch[i] for i in indices or [0]]
        with offload_activations(training.activation_offload):
            pairs, answers = forward_pairs(engine, training, part)
            losses = step_loss(pairs, training, _weights(part), *_divisors(batch))
        if indices:
            sums += _sums(losses, pairs, training)
            if flops:
                computed += flops.of(answers)
            seen.append((part, losses.detach()))
        # DeepSpeed averages over ranks; this undoes it.
        engine.backward(losses.sum() * (dist.get_world_size() if indices else 0.0))
        if last:
            for group in engine.optimizer.param_groups:
                group["lr"] = learning_rate
        engine.step()
    *totals, all_computed = sum_over_ranks(torch.cat([sums, computed]).cpu()).tolist()
    grad_norm = float(engine.get_global_grad_norm())
    if not math.isfinite(totals[0]) or not math.isfinite(grad_norm):
        _refuse_step(batch, seen, totals[0], grad_norm)
    seconds = time.monotonic() - began
    runtime.watchdog.rest()
    tokens = sum(_all_tokens(each, training) for each in batch)
    metrics = _metrics(totals, len(batch), training) | {
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds / dist.get_world_size(),
        "tokens": tokens,
        "ranks": dist.get_world_size(),
        "gpus": dist.get_world_size() if torch.cuda.is_available() else 0,
        "peak_memory_gib": peak_memory_gib(),
    }
    if flops:
        metrics["mfu"] = all_computed / seconds / dist.get_world_size() / flops.peak
    return metrics


def evaluate(runtime: Runtime, heldout: Sequence[Example]) -> dict[str, float]:
    """Loss, accuracy and margin over the held-out pairs; nothing where there are none."""
    if not heldout:
        return {}
    engine, training = runtime.engine, runtime.training
    engine.eval()
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=local_device())
    for indices in _my_micro_batches(heldout, training):
        runtime.watchdog.alive()
        part = [heldout[i] for i in indices or [0]]
        with torch.no_grad():
            pairs, _ = forward_pairs(engine, training, part)
            losses = step_loss(pairs, training, torch.ones_like(pairs.chosen), *_divisors(heldout))
        if indices:
            sums += _sums(losses, pairs, training)
    runtime.watchdog.rest()
    metrics = _metrics(sum_over_ranks(sums.cpu()).tolist(), len(heldout), training)
    return {f"heldout_{name}": metrics[name] for name in PAIR_METRICS if name in metrics}


def forward_pairs(
    engine: Any, training: Training, batch: Sequence[Example]
) -> tuple[PairLogps, AnswerPack]:
    """Log-probs of the pairs under policy and reference, and the pack that was computed."""
    device = local_device()
    if not OBJECTIVES[training.objective].of_pairs:
        answers = pack_answers([each.chosen for each in batch], device)
        chosen = sum_per_sequence(engine(answers), answers, len(batch))
        rejected = torch.zeros_like(chosen)
    else:
        answers = pack_pairs([(each.chosen, each.rejected) for each in batch], device)
        sums = sum_per_sequence(engine(answers), answers, 2 * len(batch))
        chosen, rejected = sums[0::2], sums[1::2]

    def column(values: list[float]) -> torch.Tensor:
        return to_device(np.array(values), torch.float64, device)

    return (
        PairLogps(
            chosen,
            rejected,
            column([_total(each.reference_chosen) for each in batch]),
            column([_total(each.reference_rejected) for each in batch]),
            column([each.chosen.answer_length for each in batch]),
            column([each.rejected.answer_length for each in batch]),
            targets_of(batch, device),
        ),
        answers,
    )


def _cost(example: Example, training: Training) -> int:
    """Tokens that an example adds to a forward."""
    of_pairs = OBJECTIVES[training.objective].of_pairs
    return example.tokens if of_pairs else len(example.chosen.ids)


def _all_tokens(example: Example, training: Training) -> int:
    """Tokens of the example's sequences, each with its prompt, as other trainers count them."""
    of_pairs = OBJECTIVES[training.objective].of_pairs
    return len(example.chosen.ids) + (len(example.rejected.ids) if of_pairs else 0)


def _my_micro_batches(examples: Sequence[Example], training: Training) -> list[list[int]]:
    costs = [_cost(each, training) for each in examples]
    return micro_batches(costs, dist.get_world_size(), training.tokens_per_batch)[dist.get_rank()]


def _weights(batch: Sequence[Example]) -> torch.Tensor:
    return to_device(np.array([each.weight for each in batch]), torch.float64, local_device())


def _divisors(batch: Sequence[Example]) -> tuple[int, int]:
    """Pairs, and chosen answer tokens, of a whole step."""
    return len(batch), sum(each.chosen.answer_length for each in batch)


def _sums(losses: torch.Tensor, pairs: PairLogps, training: Training) -> torch.Tensor:
    """Sums over pairs of `SUMS`."""
    with torch.no_grad():
        chosen, rejected = OBJECTIVES[training.objective].rewards(pairs, training)
        margin = chosen - rejected
        kl = (pairs.ratio_chosen + pairs.ratio_rejected) / 2
        parts = (losses, (margin > 0).double(), margin, chosen, rejected, kl)
        return torch.stack([part.sum() for part in parts])


def _metrics(totals: Sequence[float], pairs: int, training: Training) -> dict[str, float]:
    """Means by name, of those that the objective has; the loss is divided already."""
    if not OBJECTIVES[training.objective].of_pairs:
        return {"loss": totals[0]}
    named = {name: total / pairs for name, total in zip(SUMS, totals, strict=True)}
    named["loss"] = totals[0]
    if training.objective in WITHOUT_REFERENCE:
        del named["kl_estimate"]
    return named


def _refuse_step(
    batch: Sequence[Example],
    seen: Sequence[tuple[Sequence[Example], torch.Tensor]],
    loss: float,
    grad_norm: float,
) -> None:
    """UserError naming the pairs whose loss is not finite; seen: this rank's, with their losses."""
    mine = [
        example.id
        for part, losses in seen
        for example, finite in zip(part, torch.isfinite(losses).tolist(), strict=True)
        if not finite
    ]
    broken = [id_ for share in gather_to_all(mine) for id_ in share]
    ids = ", ".join(broken or [each.id for each in batch])
    raise UserError(
        f"the loss is {loss}, the gradient's norm {grad_norm}; "
        f"{'the pairs whose loss it is' if broken else 'the pairs of this step'}: {ids}"
    )


def _total(logps: np.ndarray | None) -> float:
    return 0.0 if logps is None else float(logps.astype(np.float64).sum())
