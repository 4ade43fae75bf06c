"""Training one policy from its pairs to a model directory."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_atomically
from vcsoup_dist.forward.end_tokens import end_tokens
from vcsoup_dist.progress import log, progress
from vcsoup_dist.recipe import Launch, Training
from vcsoup_dist.training.batches import step_pairs
from vcsoup_dist.training.checkpoint import (
    Found,
    best_checkpoint,
    load,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from vcsoup_dist.training.distributed import barrier, control_group, is_first
from vcsoup_dist.training.engine import full_shapes, save_companions
from vcsoup_dist.training.examples import (
    Example,
    encode_files,
    first_refused,
    load_references,
    make_examples,
    weighted,
)
from vcsoup_dist.training.export import export_policy
from vcsoup_dist.training.flops import FlopCounter, peak_tflops
from vcsoup_dist.training.job import SUMMARY, PolicyTask
from vcsoup_dist.training.metrics import MetricsLog
from vcsoup_dist.training.schedule import count_steps, learning_rate, passes_warning
from vcsoup_dist.training.start_checks import chance_warning, check_forward, check_start
from vcsoup_dist.training.step import Trainer, evaluate, take_step
from vcsoup_dist.training.stopping import StopRequest
from vcsoup_dist.training.watchdog import Watchdog


def train_policy(
    engine: Any,
    tokenizer: Any,
    training: Training,
    launch: Launch,
    task: PolicyTask,
    found: Found | None,
    stop: StopRequest,
    watchdog: Watchdog,
) -> bool:
    """Train, evaluate and export one policy; False where it saved and stopped on request.

    Called by all ranks together. `found`: the checkpoint to go on from.
    """
    examples, heldout, unusable = _load(tokenizer, training, task)
    steps = count_steps(training, task.unfiltered_pairs, len(examples))
    if found is not None and found.step < steps:
        load(engine, found)
    start = 0 if found is None else found.step
    shapes = full_shapes(engine)
    flops, peak = _flop_counter(engine, training, launch, shapes)
    trainer = Trainer(engine, training, flops, peak * 1e12, watchdog)
    if is_first():
        _say_what_is_trained(task, training, examples, heldout, unusable, steps, start, peak)
        if not _ends(engine.module.model, tokenizer, examples):
            log.warning(
                "%s: no answer ends in an end token of the chat template, the tokenizer or the "
                "generation config, so the policy cannot learn when to stop; look at the template",
                task.name,
            )
    gap = None
    if start == 0:
        check_forward(engine, tokenizer, training)
        if task.references:
            gap = check_start(trainer, _batch_of(examples, training, task.seed, 0))

    measured = {} if found is None else dict(found.metrics)
    with contextlib.ExitStack() as stack:
        metrics = None
        if is_first():
            metrics = MetricsLog(Path(task.logs), start, launch.wandb, task.name)
            stack.enter_context(metrics)
        advance = stack.enter_context(progress(task.name, steps, "steps", start))
        step, saved = start, start
        while step < steps and not stop.on_any_rank(worked=step > start):
            batch = _batch_of(examples, training, task.seed, step)
            measured = take_step(trainer, batch, learning_rate(step, steps, training))
            if step == 0 and is_first():
                rows = int(engine.module.model.config.get_text_config().vocab_size)
                if said := chance_warning(measured, training, rows):
                    log.warning("%s: %s", task.name, said)
            step += 1
            due = step % training.checkpoint_every == 0 or step == steps
            if (
                step % training.evaluate_every == 0
                or step == steps
                or (due and training.export == "best")
            ):
                measured |= evaluate(trainer, heldout)
            if metrics:
                metrics.write(step - 1, measured)
            advance(1)
            if due:
                _save(trainer, task, step, measured)
                saved = step
        if step < steps and saved < step:
            _save(trainer, task, step, measured)
    if step < steps:
        if is_first():
            done = f"saved after step {step} of {steps}" if step else "before its first step"
            log.info("%s: stopped on request, %s", task.name, done)
        return False
    exported = _export(trainer, tokenizer, task, shapes)
    if is_first():
        _summarise(task, training, examples, unusable, measured, exported, gap)
    return True


def _load(
    tokenizer: Any, training: Training, task: PolicyTask
) -> tuple[list[Example], list[Example], Counter[str]]:
    files = [Path(file) for file in task.pairs]
    rows = encode_files(files, tokenizer, training)
    share = -(-training.heldout_pairs // max(len(task.heldout), 1))
    held_rows = [
        row
        for file in task.heldout
        for row in encode_files([Path(file)], tokenizer, training, limit=share)
    ]
    known = None
    if task.references:
        wanted = {row.id for row in (*rows, *held_rows)}
        known = load_references([Path(folder) for folder in task.references], wanted)
    examples, unusable = make_examples(rows, known, training)
    heldout, _ = make_examples(held_rows, known, training)
    if not examples:
        raise UserError(
            f"{task.name}: no pair can be trained on ({_counts(unusable)}); "
            + (first_refused(rows) or f"training.max_length is {training.max_length}")
        )
    if is_first() and (refused := first_refused(rows)):
        log.warning("%s: pairs are left out, the first is %s", task.name, refused)
    if training.pair_weights == "consistency":
        examples = weighted(examples)
    return examples, heldout, unusable


def _batch_of(
    examples: Sequence[Example], training: Training, seed: int, step: int
) -> list[Example]:
    return [examples[i] for i in step_pairs(len(examples), training.pairs_per_step, seed, step)]


def _ends(model: Any, tokenizer: Any, examples: Sequence[Example]) -> bool:
    """Whether some answer has an end token near its end, where templates put it."""
    ends = set(end_tokens(tokenizer, getattr(model, "generation_config", None)))
    return any(not ends.isdisjoint(map(int, each.chosen.ids[-3:])) for each in examples[:100])


def _flop_counter(
    engine: Any, training: Training, launch: Launch, shapes: dict[str, tuple[int, ...]]
) -> tuple[FlopCounter | None, float]:
    """What MFU is reckoned with, and the peak in TFLOP/s; None where it is not."""
    peak = peak_tflops(launch.peak_tflops, training.dtype)
    experts = any("experts" in name for name in shapes)  # of which a token uses a few
    if peak is None or experts:
        return None, 0.0
    try:
        return FlopCounter(engine.module.model.config, shapes), peak
    except AttributeError as error:
        log.warning("no MFU: this architecture's config says too little (%s)", error)
        return None, 0.0


def _save(trainer: Trainer, task: PolicyTask, step: int, measured: dict[str, float]) -> None:
    training = trainer.training
    save_checkpoint(
        trainer.engine,
        Path(task.scratch),
        step,
        measured,
        training.checkpoints_kept,
        training.export == "best",
        control_group(),
    )


def _export(
    trainer: Trainer, tokenizer: Any, task: PolicyTask, shapes: dict[str, tuple[int, ...]]
) -> Found:
    """Write the policy; returns the checkpoint that it is."""
    scratch, training = Path(task.scratch), trainer.training
    companions = scratch / "companions"
    if is_first():
        save_companions(trainer.engine, tokenizer, companions)
    barrier()
    checkpoint = (best_checkpoint if training.export == "best" else newest_checkpoint)(scratch)
    export_policy(
        checkpoint, companions, Path(task.output), training.dtype, shapes, control_group()
    )
    if is_first():
        shutil.rmtree(companions)
    return read_checkpoint(checkpoint)


def _say_what_is_trained(
    task: PolicyTask,
    training: Training,
    examples: Sequence[Example],
    heldout: Sequence[Example],
    unusable: Counter[str],
    steps: int,
    start: int,
    peak: float,
) -> None:
    log.info(
        "%s: %s on %d pairs%s, %d held out, %d steps of %d pairs, MFU %s%s",
        task.name,
        training.objective,
        len(examples),
        f" (left out: {_counts(unusable)})" if unusable else "",
        len(heldout),
        steps,
        training.pairs_per_step,
        "not reckoned" if not peak else f"of {peak:g} TFLOP/s",
        f", resumed after step {start}" if start else "",
    )
    if odd := passes_warning(training, task.unfiltered_pairs, len(examples), steps):
        log.warning("%s: %s", task.name, odd)


def _counts(unusable: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(unusable.items())) or "none"


def _summarise(
    task: PolicyTask,
    training: Training,
    examples: Sequence[Example],
    unusable: Counter[str],
    measured: dict[str, float],
    exported: Found,
    gap: float | None,
) -> None:
    shown = ("loss", "accuracy", "margin")
    heldout = {name: x for name, x in exported.metrics.items() if name.startswith("heldout_")}
    summary = {
        "steps": exported.step,
        "pairs": len(examples),
        "pairs_left_out": dict(sorted(unusable.items())),
        "passes": exported.step * training.pairs_per_step / len(examples),
        "last_step": {name: measured[name] for name in shown if name in measured},
        **heldout,
    }
    write_atomically(Path(task.output) / SUMMARY, json.dumps(summary, indent=1) + "\n")
    log.info(
        "%s: done; loss %.4f; the policy is step %d%s%s",
        task.name,
        measured["loss"],
        exported.step,
        f", held out {heldout['heldout_loss']:.4f}" if heldout else "",
        f"; at the start |policy - reference| was at most {gap:.1e} nats" if gap else "",
    )
