"""The learning rate as a function of the step, so that it needs no state to resume."""

from __future__ import annotations

import math

from vcsoup_dist.recipe import Training


def learning_rate(step: int, steps: int, training: Training) -> float:
    """Rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then the schedule."""
    warmup = round(training.warmup * steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(steps - warmup, 1)
    factor = {
        "cosine": (1 + math.cos(math.pi * share)) / 2,
        "linear": 1 - share,
        "constant": 1.0,
    }[training.schedule]
    return training.learning_rate * factor
