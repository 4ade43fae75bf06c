"""How often training takes a pair, where that is not what a person may expect."""

from __future__ import annotations

from vcsoup_dist.recipe import Training

NOTED = 1.05  # from so many times the passes that were asked for


def odd_passes(training: Training, unfiltered_pairs: int, pairs: int, steps: int) -> str:
    """A line where few pairs are taken more often than the recipe says; empty where they are not.

    Every step has `pairs_per_step` pairs, so the last one goes on into the next pass. pairs: those
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
    if taken < NOTED * asked:
        return ""
    return (
        f"{steps} whole steps of {each} are {taken:.2f} passes over {pairs} pairs, and "
        f"{asked:.2f} were asked for; for fewer, lower training.pairs_per_step or give "
        "training.steps"
    )
