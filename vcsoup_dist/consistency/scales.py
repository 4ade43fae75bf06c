"""s_j, the spread of each reward: the first pass over the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.blocks import Block, read_rewards, read_value
from vcsoup_dist.consistency.moments import Moments, moments
from vcsoup_dist.consistency.shard_map import Run
from vcsoup_dist.errors import UserError

Array = NDArray[np.float64]
Normalisation = Literal["zscore", "gap_std", "robust", "none"]

NORMAL_MAD = 1.4826  # standard deviation of a normal over its median absolute deviation


def reward_scale(
    blocks: Sequence[Block],
    normalisation: Normalisation,
    run: Run,
    advance: Callable[[float], None],
) -> Array:
    """s_j [N]: the spread of each reward over the pairs of `blocks` that have it.

    `zscore`: standard deviation of chosen and rejected pooled; `gap_std`: of the gaps; `robust`:
    median absolute deviation of both pooled, scaled to a normal's standard deviation; `none`: 1.
    Deviations have ddof = 0. A mean would cancel in a gap, so none is taken off. NaN where no pair
    has the reward. `advance` is told the pairs that were read.
    """
    n = len(blocks[0].scores)
    if normalisation == "none":
        return np.ones(n)
    if normalisation == "robust":
        return np.array([_robust(blocks, j, advance) for j in range(n)])
    parts = run(partial(_moments, of_gaps=normalisation == "gap_std"), blocks)
    return _merged(parts, blocks, advance).std()


def check_scale(
    scale: Array, values: Sequence[str], normalisation: Normalisation, where: str
) -> None:
    """Raises UserError where a reward has no spread over the pairs that `where` names."""
    for value, s in zip(values, scale.tolist(), strict=True):
        if s > 0:
            continue
        found = (
            f"no pair of {where} has one"
            if np.isnan(s)
            else f"its spread ({normalisation}) is {s:g} over {where}, so gaps cannot be measured "
            "by it"
        )
        raise UserError(
            f"values.{value}.reward: {found}; take another reward or consistency.normalisation"
        )


def pooled(chosen: Array, rejected: Array) -> Array:
    """Both sides' rewards [2 P, ...]; NaN where a pair lacks one of the two."""
    missing = np.isnan(chosen - rejected)
    return np.concatenate([np.where(missing, np.nan, side) for side in (chosen, rejected)])


def _moments(block: Block, of_gaps: bool) -> Moments:
    chosen, rejected = read_rewards(block)
    return moments(chosen - rejected if of_gaps else pooled(chosen, rejected))


def _merged(
    parts: Iterable[Moments], blocks: Sequence[Block], advance: Callable[[float], None]
) -> Moments:
    merged = None
    for part, block in zip(parts, blocks, strict=True):
        merged = part if merged is None else merged.merged(part)
        advance(block.rows)
    assert merged is not None
    return merged


def _robust(blocks: Sequence[Block], j: int, advance: Callable[[float], None]) -> float:
    """A median needs all numbers at once: 16 bytes a pair, of one value at a time."""
    both = np.empty(2 * sum(block.rows for block in blocks))
    filled = 0
    for block in blocks:
        part = pooled(*read_value(block, j))
        part = part[~np.isnan(part)]
        both[filled : filled + len(part)] = part
        filled += len(part)
        advance(block.rows / len(block.scores))
    if not filled:
        return float("nan")
    both = both[:filled]
    both -= np.median(both, overwrite_input=True)
    np.abs(both, out=both)
    return NORMAL_MAD * float(np.median(both, overwrite_input=True))
