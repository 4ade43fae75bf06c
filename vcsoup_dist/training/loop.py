"""Training one policy: steps of pairs, cut into balanced micro-batches, over all ranks."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_atomically
from vcsoup_dist.forward.answers import pack_answers, sum_per_sequence
from vcsoup_dist.progress import log, progress
from vcsoup_dist.recipe import Training
from vcsoup_dist.training import objectives
from vcsoup_dist.training.batches import micro_batches, step_pairs
from vcsoup_dist.training.checkpoint import resume, save_checkpoint
from vcsoup_dist.training.engine import local_device, save_companions
from vcsoup_dist.training.examples import Example, load_examples
from vcsoup_dist.training.export import export_policy
from vcsoup_dist.training.jobs import PolicyTask
from vcsoup_dist.training.metrics import MetricsLog, peak_memory_gib
from vcsoup_dist.training.schedule import learning_rate

# Largest per-token |policy - reference| in nats at the start, by dtype: only rounding may differ,
# since a pack of other neighbours takes other kernels.
START_TOLERANCE = {"fp32": 1e-3, "bf16": 0.5}

SUMS = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "log_ratio")


def train_policy(engine: Any, tokenizer: Any, training: Training, task: PolicyTask) -> None:
    """Train, evaluate and export one policy. Called by all ranks together."""
    references = [Path(folder) for folder in task.references]
    pairs_file = Path(task.filtered) / "pairs.parquet"
    heldout_file = Path(task.filtered) / "heldout.parquet"
    examples, dropped = load_examples(pairs_file, references, tokenizer, training)
    heldout, _ = load_examples(
        heldout_file, references, tokenizer, training, limit=training.heldout_pairs
    )
    first = dist.get_rank() == 0
    if not examples:
        raise UserError(
            f"{task.name}: no pair fits into training.max_length = {training.max_length}"
        )
    steps = count_steps(training, task.unfiltered_pairs, len(examples))
    resumed = resume(engine, Path(task.scratch))
    start, checkpoint = resumed.step, resumed.checkpoint
    if first:
        log.info(
            "%s: %d pairs (%d too long), %d held out, %d steps of %d pairs%s",
            task.name,
            len(examples),
            dropped,
            len(heldout),
            steps,
            training.pairs_per_step,
            f", resumed after step {start}" if start else "",
        )
    gap = None if start or not references else check_start(engine, training, task.seed, examples)
    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(MetricsLog(Path(task.logs), start)) if first else None
        advance = stack.enter_context(progress(task.name, steps - start, "steps"))
        measured = dict(resumed.metrics)
        for step in range(start, steps):
            last = step + 1 == steps
            measured = take_step(engine, training, task, examples, step, steps)
            if (step + 1) % training.evaluate_every == 0 or last:
                measured |= evaluate(engine, training, heldout)
            if metrics:
                metrics.write(step, measured)
            advance(1)
            if (step + 1) % training.checkpoint_every == 0 or last:
                checkpoint = save_checkpoint(engine, Path(task.scratch), step + 1, measured)
    assert checkpoint is not None
    output = Path(task.output)
    companions = Path(task.scratch) / "companions"
    if first:
        save_companions(engine, tokenizer, companions)
    dist.barrier()
    export_policy(checkpoint, companions, output, training.dtype)
    if first:
        shutil.rmtree(companions)
        summary = {
            "steps": steps,
            "pairs": len(examples),
            "pairs_too_long": dropped,
            "passes": steps * training.pairs_per_step / len(examples),
            "last_step": {name: measured[name] for name in ("loss", "accuracy", "margin")},
            **{name: value for name, value in measured.items() if name.startswith("heldout_")},
        }
        write_atomically(output / "training.json", json.dumps(summary, indent=1) + "\n")
        log.info(
            "%s: done; loss %.4f%s%s",
            task.name,
            measured["loss"],
            f", held out {measured['heldout_loss']:.4f}" if "heldout_loss" in measured else "",
            f"; at the start |policy - reference| was at most {gap:.1e} nats" if gap else "",
        )


def count_steps(training: Training, unfiltered_pairs: int, pairs: int) -> int:
    """Optimizer steps of a policy; see `training.epochs` in the recipe."""
    if training.steps is not None:
        return training.steps
    counted = unfiltered_pairs if training.equal_steps else pairs
    return max(1, math.ceil(training.epochs * counted / training.pairs_per_step))


def take_step(
    engine: Any,
    training: Training,
    task: PolicyTask,
    examples: Sequence[Example],
    step: int,
    steps: int,
) -> dict[str, float]:
    """One optimizer step; returns its metrics, the same on every rank.

    The loss is divided by the step's pairs (SFT: answer tokens) over all ranks, so that neither
    the micro-batches nor the world size change the gradient.
    """
    began = time.monotonic()
    engine.train()
    batch = [
        examples[i] for i in step_pairs(len(examples), training.pairs_per_step, task.seed, step)
    ]
    count = (
        sum(each.chosen.answer_length for each in batch)
        if training.objective == "sft"
        else len(batch)
    )
    plan = micro_batches(
        [_cost(each, training) for each in batch], dist.get_world_size(), training.tokens_per_batch
    )
    mine = plan[dist.get_rank()]
    sums = torch.zeros(len(SUMS), dtype=torch.float64)
    for number, indices in enumerate(mine):
        engine.set_gradient_accumulation_boundary(number == len(mine) - 1)
        # An empty micro-batch runs the step's first pair with weight 0.
        losses, part = pair_losses(engine, training, [batch[i] for i in indices or [0]])
        if indices:
            sums += part
        # DeepSpeed averages over ranks; this undoes it.
        scale = dist.get_world_size() / count if indices else 0.0
        engine.backward(losses.sum() * scale)
        if number == len(mine) - 1:
            for group in engine.optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, training)
        engine.step()
    sums = _sum_over_ranks(sums)
    values = {name: float(total) / len(batch) for name, total in zip(SUMS, sums, strict=True)}
    values["loss"] = float(sums[0]) / count
    if not math.isfinite(values["loss"]):
        ids = ", ".join(each.id for each in batch)
        raise UserError(
            f"{task.name}: the loss of step {step} is {values['loss']}; its pairs: {ids}"
        )
    seconds = time.monotonic() - began
    tokens = sum(_cost(each, training) for each in batch)
    return values | {
        "grad_norm": float(engine.get_global_grad_norm()),
        "learning_rate": learning_rate(step, steps, training),
        "tokens_per_second": tokens / seconds,
        "peak_memory_gib": peak_memory_gib(),
    }


def pair_losses(
    engine: Any, training: Training, batch: Sequence[Example]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss [P] of each pair, and the sums over pairs of `SUMS`."""
    device = local_device()
    if training.objective == "sft":
        answers = pack_answers([each.chosen for each in batch], device)
        losses = objectives.sft(sum_per_sequence(engine(answers), answers, len(batch)))
        return losses, torch.tensor([losses.detach().sum().item()] + [0.0] * (len(SUMS) - 1))
    answers = pack_answers(
        [side for each in batch for side in (each.chosen, each.rejected)], device
    )
    logps = sum_per_sequence(engine(answers), answers, 2 * len(batch))
    chosen, rejected = logps[0::2], logps[1::2]
    reference = torch.tensor(
        [[_total(each.reference_chosen), _total(each.reference_rejected)] for each in batch],
        device=device,
    )
    losses = objectives.dpo(
        chosen, rejected, reference[:, 0], reference[:, 1], training.beta, training.label_smoothing
    )
    with torch.no_grad():
        of_chosen = training.beta * (chosen - reference[:, 0])
        of_rejected = training.beta * (rejected - reference[:, 1])
        margin = of_chosen - of_rejected
        log_ratio = (of_chosen + of_rejected) / (2 * training.beta)
        parts = (losses, (margin > 0).float(), margin, of_chosen, of_rejected, log_ratio)
        sums = torch.stack([part.double().sum() for part in parts]).cpu()
    return losses, sums


def check_start(engine: Any, training: Training, seed: int, examples: Sequence[Example]) -> float:
    """Largest per-token |policy - reference| over the first step's pairs, in nats.

    Raises UserError where it is more than rounding: the reference is then of another model,
    template or data, which the loss alone would hardly show.
    """
    batch = [examples[i] for i in step_pairs(len(examples), training.pairs_per_step, seed, 0)]
    plan = micro_batches(
        [each.tokens for each in batch], dist.get_world_size(), training.tokens_per_batch
    )
    worst = 0.0
    engine.eval()
    for indices in plan[dist.get_rank()]:
        part = [batch[i] for i in indices or [0]]
        answers = pack_answers(
            [side for each in part for side in (each.chosen, each.rejected)], local_device()
        )
        with torch.no_grad():
            policy = engine(answers).cpu()
        sides = [side for each in part for side in (each.reference_chosen, each.reference_rejected)]
        reference = torch.from_numpy(np.concatenate([side for side in sides if side is not None]))
        apart = float((policy - reference).abs().max())
        worst = max(worst, apart if math.isfinite(apart) else math.inf)
    total = torch.tensor([worst])
    dist.all_reduce(total := total.to(local_device()), op=dist.ReduceOp.MAX)
    worst = float(total)
    if not worst <= START_TOLERANCE[training.dtype]:
        raise UserError(
            f"the policy is not its reference at the start: log-probs of a token differ by "
            f"{worst:.3g} nats; remove the reference/ folder of this run and start again"
        )
    return worst


def evaluate(engine: Any, training: Training, heldout: Sequence[Example]) -> dict[str, float]:
    """Loss, accuracy and margin over the held-out pairs; nothing where there are none."""
    if not heldout:
        return {}
    plan = micro_batches(
        [_cost(each, training) for each in heldout],
        dist.get_world_size(),
        training.tokens_per_batch,
    )
    sums = torch.zeros(len(SUMS), dtype=torch.float64)
    engine.eval()
    for indices in plan[dist.get_rank()]:
        with torch.no_grad():
            _, values = pair_losses(engine, training, [heldout[i] for i in indices or [0]])
        if indices:
            sums += values
    sums = _sum_over_ranks(sums)
    if training.objective == "sft":
        return {"heldout_loss": float(sums[0]) / sum(each.chosen.answer_length for each in heldout)}
    names = ("loss", "accuracy", "margin")
    return {f"heldout_{name}": float(sums[SUMS.index(name)]) / len(heldout) for name in names}


def _cost(example: Example, training: Training) -> int:
    return len(example.chosen.ids) if training.objective == "sft" else example.tokens


def _total(logps: np.ndarray | None) -> float:
    assert logps is not None
    return float(logps.astype(np.float64).sum())


def _sum_over_ranks(sums: torch.Tensor) -> torch.Tensor:
    device = local_device()
    total = sums.to(device)
    dist.all_reduce(total)
    return total.cpu()
