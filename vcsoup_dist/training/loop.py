"""Training one policy, from its pairs to a model directory."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.forward.end_tokens import end_tokens
from vcsoup_dist.progress import log, progress
from vcsoup_dist.records.training_summary import PairMetrics, TrainingSummary
from vcsoup_dist.training.batches import step_pairs
from vcsoup_dist.training.checkpoint import (
    CheckpointInfo,
    best_checkpoint,
    load,
    newest_checkpoint,
    save_checkpoint,
)
from vcsoup_dist.training.distributed import barrier, control_group, is_first
from vcsoup_dist.training.engine import full_shapes, save_auxiliary_files
from vcsoup_dist.training.examples import Example, Examples, open_examples
from vcsoup_dist.training.export import export_policy
from vcsoup_dist.training.flops import FlopCounter, flop_counter
from vcsoup_dist.training.job import PolicyTask
from vcsoup_dist.training.metrics import MetricsLog
from vcsoup_dist.training.objectives import OBJECTIVES
from vcsoup_dist.training.runtime import Runtime
from vcsoup_dist.training.schedule import count_steps, learning_rate, passes_warning
from vcsoup_dist.training.selection import count_text
from vcsoup_dist.training.start_checks import chance_warning, check_forward, check_start
from vcsoup_dist.training.step import PAIR_METRICS, evaluate, take_step


@dataclass(frozen=True)
class _Policy:
    """One policy on this rank."""

    runtime: Runtime
    task: PolicyTask
    train: Examples
    heldout: list[Example]
    steps: int
    """Optimizer steps in all."""
    start: int
    """Of which so many were done before this launch."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the model's tensors by name."""
    flops: FlopCounter | None

    def batch(self, step: int) -> list[Example]:
        """The pairs of an optimizer step."""
        each = self.runtime.training.pairs_per_step
        places = step_pairs(len(self.train), each, self.task.seed, step)
        return [self.train[i] for i in places]


def train_policy(runtime: Runtime, task: PolicyTask, checkpoint: CheckpointInfo | None) -> bool:
    """Train, evaluate and export one policy; False where it saved and stopped on request.

    Called by all ranks together. checkpoint: the one to resume from.
    """
    train, heldout = open_examples(task, OBJECTIVES[runtime.training.objective].of_pairs)
    steps = count_steps(runtime.training, task.unfiltered_pairs, len(train))
    if checkpoint is not None and checkpoint.step < steps:
        load(runtime.engine, checkpoint)
    shapes = full_shapes(runtime.model)
    flops = flop_counter(runtime.job, runtime.model.config, shapes)
    start = 0 if checkpoint is None else checkpoint.step
    policy = _Policy(runtime, task, train, list(heldout), steps, start, shapes, flops)
    if is_first():
        _describe(policy)
    difference = None
    if start == 0:
        check_forward(runtime)
        if task.references:
            difference = check_start(runtime, policy.batch(0))
    metrics = _take_steps(policy, {} if checkpoint is None else dict(checkpoint.metrics))
    if metrics is None:
        return False
    exported = _export(policy)
    if is_first():
        _summarise(policy, metrics, exported, difference)
    return True


def _take_steps(policy: _Policy, metrics: dict[str, float]) -> dict[str, float] | None:
    """Take the steps that are left; the last one's metrics, or None where stopped on request.

    metrics: those of the step before.
    """
    runtime, task, steps = policy.runtime, policy.task, policy.steps
    training, launch = runtime.training, runtime.job.launch
    step = saved = policy.start
    with contextlib.ExitStack() as stack:
        metrics_log = None
        if is_first():
            metrics_log = MetricsLog(Path(task.logs), step, launch.wandb, task.name)
            stack.enter_context(metrics_log)
        advance = stack.enter_context(progress(task.name, steps, "steps", step))
        while step < steps and not runtime.stop.on_any_rank(worked=step > policy.start):
            rate = learning_rate(step, steps, training)
            metrics = take_step(runtime, policy.batch(step), rate, policy.flops)
            if step == 0 and is_first():
                _warn_of_chance(policy, metrics)
            step += 1
            last = step == steps
            save = last or step % training.checkpoint_every == 0
            measure = last or step % training.evaluate_every == 0
            if measure or (save and training.export == "best"):
                metrics |= evaluate(runtime, policy.heldout)
            if metrics_log:
                metrics_log.write(step - 1, metrics)
            advance(1)
            if save:
                _save(policy, step, metrics)
                saved = step
        if step < steps and saved < step:
            _save(policy, step, metrics)
    if step == steps:
        return metrics
    if is_first():
        done = f"saved after step {step} of {steps}" if step else "before its first step"
        log.info("%s: stopped on request, %s", task.name, done)
    return None


def _describe(policy: _Policy) -> None:
    """Log what is trained, and warn of what a person may not expect."""
    task, training, left_out = policy.task, policy.runtime.training, policy.task.train.left_out
    name, count = task.name, len(policy.train)
    log.info(
        "%s: %s on %d pairs%s, %d held out, %d steps of %d pairs, MFU %s%s",
        name,
        training.objective,
        count,
        f" (left out: {count_text(left_out)})" if left_out else "",
        len(policy.heldout),
        policy.steps,
        training.pairs_per_step,
        f"of {policy.flops.peak / 1e12:g} TFLOP/s" if policy.flops else "not computed",
        f", resumed after step {policy.start}" if policy.start else "",
    )
    if warning := passes_warning(training, task.unfiltered_pairs, count, policy.steps):
        log.warning("%s: %s", name, warning)
    if not _has_ends(policy):
        log.warning(
            "%s: no answer ends in an end token of the chat template, the tokenizer or the "
            "generation config, so the policy cannot learn when to stop; check the template",
            name,
        )


def _has_ends(policy: _Policy) -> bool:
    """Whether some answer has an end token near its end, where templates put it."""
    generation_config = getattr(policy.runtime.model, "generation_config", None)
    ends = set(end_tokens(policy.runtime.tokenizer, generation_config))
    few = policy.train[:100]
    return any(not ends.isdisjoint(map(int, each.chosen.ids[-3:])) for each in few)


def _warn_of_chance(policy: _Policy, metrics: Mapping[str, float]) -> None:
    rows = int(policy.runtime.model.config.get_text_config().vocab_size)
    if warning := chance_warning(metrics, policy.runtime.training, rows):
        log.warning("%s: %s", policy.task.name, warning)


def _save(policy: _Policy, step: int, metrics: Mapping[str, float]) -> None:
    training, scratch = policy.runtime.training, Path(policy.task.scratch)
    kept, best = training.checkpoints_kept, training.export == "best"
    save_checkpoint(policy.runtime.engine, scratch, step, metrics, kept, best, control_group())


def _export(policy: _Policy) -> CheckpointInfo:
    """Write the policy; returns the checkpoint that it is."""
    runtime, scratch = policy.runtime, Path(policy.task.scratch)
    training, output = runtime.training, Path(policy.task.output)
    auxiliary = scratch / "auxiliary"
    if is_first():
        save_auxiliary_files(runtime.model, runtime.tokenizer, auxiliary)
    barrier()
    chosen = (best_checkpoint if training.export == "best" else newest_checkpoint)(scratch)
    export_policy(chosen.path, auxiliary, output, training.dtype, policy.shapes, control_group())
    if is_first():
        shutil.rmtree(auxiliary)
    return chosen


def _summarise(
    policy: _Policy,
    last: Mapping[str, float],
    exported: CheckpointInfo,
    difference: float | None,
) -> None:
    """Write training.json and log the end; difference: |policy - reference| at the start."""
    task, count = policy.task, len(policy.train)
    measured = "heldout_loss" in exported.metrics
    heldout = _pair_metrics(exported.metrics, "heldout_") if measured else None
    summary = TrainingSummary(
        steps=exported.step,
        pairs=count,
        pairs_left_out=dict(sorted(task.train.left_out.items())),
        passes=exported.step * policy.runtime.training.pairs_per_step / count,
        last_step=_pair_metrics(last),
        heldout=heldout,
    )
    summary.write(Path(task.output))
    log.info(
        "%s: done; loss %.4f; the policy is step %d%s%s",
        task.name,
        last["loss"],
        exported.step,
        f", held out {heldout.loss:.4f}" if heldout else "",
        f"; at the start |policy - reference| was at most {difference:.1e} nats"
        if difference
        else "",
    )


def _pair_metrics(metrics: Mapping[str, float], prefix: str = "") -> PairMetrics:
    named = {name: metrics[prefix + name] for name in PAIR_METRICS if prefix + name in metrics}
    return PairMetrics(**named)
