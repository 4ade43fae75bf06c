"""How many optimizer steps a policy takes, their learning rates, and the passes over its pairs."""

from __future__ import annotations

import math

from vcsoup_dist.recipe import Training

NOTABLE = 1.05
"""Passes taken over passes asked for, from which a person should know."""


def count_steps(training: Training, unfiltered_pairs: int, pairs: int) -> int:
    """Optimizer steps of a policy; see `training.epochs` in the recipe."""
    if training.steps is not None:
        return training.steps
    counted = unfiltered_pairs if training.equal_steps else pairs
    return max(1, math.ceil(training.epochs * counted / training.pairs_per_step))


def learning_rate(step: int, steps: int, training: Training) -> float:
    """Rate of optimizer step `step` (from 0) of `steps`: linear warmup, then the schedule."""
    warmup_steps = round(training.warmup_ratio * steps)
    if step < warmup_steps:
        return training.learning_rate * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(steps - warmup_steps, 1)
    factor = {
        "cosine": (1 + math.cos(math.pi * share)) / 2,
        "linear": 1 - share,
        "constant": 1.0,
    }[training.schedule]
    return training.learning_rate * factor


def passes_warning(training: Training, unfiltered_pairs: int, pairs: int, steps: int) -> str:
    """A warning where pairs are taken more often than the recipe says; else empty.

    Every step has `pairs_per_step` pairs, so the last one reaches into the next pass. pairs: those
    that can be trained on; unfiltered_pairs: as for `count_steps`.
    """
    each = training.pairs_per_step
    if each > pairs:
        return (
            f"a step of {each} takes each of only {pairs} pairs {each / pairs:.3g} times; for one "
            f"pass a step, set training.pairs_per_step to {pairs} or less"
        )
    if training.steps is not None:
        return ""
    counted = unfiltered_pairs if training.equal_steps else pairs
    asked, taken = training.epochs * counted / pairs, steps * each / pairs
    if taken < NOTABLE * asked:
        return ""
    return (
        f"{steps} whole steps of {each} are {taken:.2f} passes over {pairs} pairs, and "
        f"{asked:.2f} were asked for; for fewer, lower training.pairs_per_step or give "
        "training.steps"
    )
