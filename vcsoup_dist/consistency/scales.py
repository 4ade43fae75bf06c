"""s_j, the spread of each reward: the first pass over the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.blocks import Block, read_rewards, read_value
from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.task_map import Run
from vcsoup_dist.moments import Moments, moments
from vcsoup_dist.records.scores import ROUNDING

Array = NDArray[np.float64]
Normalisation = Literal["zscore", "gap_std", "robust", "none"]

NORMAL_MAD = 1.4826  # standard deviation of a normal over its median absolute deviation


@dataclass(frozen=True)
class Scale:
    """How far N rewards vary over some pairs."""

    s: Array
    """[N] what gaps are measured in."""
    spread: Array
    """[N] standard deviation, chosen and rejected pooled; infinite where it is rounding alone, so
    that every gap counts as 0. NaN where no pair has the reward."""

    def of(self, j: int) -> Scale:
        """That of one reward."""
        return Scale(self.s[[j]], self.spread[[j]])


def reward_scale(
    blocks: Sequence[Block],
    normalisation: Normalisation,
    run: Run,
    advance: Callable[[float], None],
    rounding: Sequence[float] | None = None,
) -> Scale:
    """s_j [N] of each reward over the pairs of `blocks` that have it, and how far it varies.

    `zscore`: standard deviation of chosen and rejected pooled; `gap_std`: of the gaps; `robust`:
    median absolute deviation of both pooled, scaled to a normal's standard deviation; `none`: 1.
    Deviations have ddof = 0. A mean would cancel in a gap, so none is taken off. NaN where no pair
    has the reward. `advance` is called with the number of pairs read. `rounding` [N]: the
    share of a reward's size that is rounding; that of fp32 where None.
    """
    n = len(blocks[0].scores)
    if normalisation == "robust":
        columns = [_robust(blocks, j, advance) for j in range(n)]
        mean = np.concatenate([each.mean for each, _ in columns])
        std = np.concatenate([each.std() for each, _ in columns])
        s = np.array([mad for _, mad in columns])
    else:
        parts = run(partial(_moments, with_gaps=normalisation == "gap_std"), blocks)
        merged = _merged(parts, blocks, advance)
        mean, std = merged.mean[:n], merged.std()[:n]
        s = merged.std()[-n:] if normalisation != "none" else np.ones(n)
    least = np.hypot(mean, std) * (rounding or [ROUNDING["fp32"]] * n)
    flat = std <= least
    if normalisation != "none":
        s = np.where(s <= least, 0.0, s)
    return Scale(s, np.where(flat, np.inf, std))


def check_scale(
    scale: Scale, values: Sequence[str], normalisation: Normalisation, where: str
) -> None:
    """Raises UserError where a reward has no spread over the pairs that `where` names."""
    for value, s in zip(values, scale.s.tolist(), strict=True):
        if s > 0:
            continue
        found = (
            f"no pair of {where} has one"
            if np.isnan(s)
            else f"its spread ({normalisation}) is 0 over {where} but for rounding, so gaps cannot "
            "be measured by it"
        )
        raise UserError(
            f"values.{value}.reward: {found}; take another reward or consistency.normalisation"
        )


def pooled(chosen: Array, rejected: Array) -> Array:
    """Both sides' rewards [2 P, ...]; NaN where a pair lacks one of the two."""
    missing = np.isnan(chosen - rejected)
    return np.concatenate([np.where(missing, np.nan, side) for side in (chosen, rejected)])


def _moments(block: Block, with_gaps: bool) -> Moments:
    """Of the N rewards; with those of their N gaps after them."""
    chosen, rejected = read_rewards(block)
    both = pooled(chosen, rejected)
    if not with_gaps:
        return moments(both)
    gaps = np.concatenate([chosen - rejected, np.full_like(chosen, np.nan)])
    return moments(np.concatenate([both, gaps], axis=1))


def _merged(
    parts: Iterable[Moments], blocks: Sequence[Block], advance: Callable[[float], None]
) -> Moments:
    merged = None
    for part, block in zip(parts, blocks, strict=True):
        merged = part if merged is None else merged.merged(part)
        advance(block.rows)
    assert merged is not None
    return merged


def _robust(
    blocks: Sequence[Block], j: int, advance: Callable[[float], None]
) -> tuple[Moments, float]:
    """Moments of reward j, and its scaled median absolute deviation.

    A median needs all numbers at once: 16 bytes a pair, of one value at a time.
    """
    both = np.empty(2 * sum(block.rows for block in blocks))
    filled = 0
    merged = moments(np.empty((0, 1)))
    for block in blocks:
        part = pooled(*read_value(block, j))
        part = part[~np.isnan(part)]
        merged = merged.merged(moments(part[:, None]))
        both[filled : filled + len(part)] = part
        filled += len(part)
        advance(block.rows / len(block.scores))
    if not filled:
        return merged, float("nan")
    both = both[:filled]
    both -= np.median(both, overwrite_input=True)
    np.abs(both, out=both)
    return merged, NORMAL_MAD * float(np.median(both, overwrite_input=True))
