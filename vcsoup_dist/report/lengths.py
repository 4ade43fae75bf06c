"""What of a reward goes with the length of answers, and rewards at equal length.

With C candidates that answer the same P prompts, r the reward and L the tokens of an answer,

    r_cp = a_p + m_c + b L_cp + e_cp

is fitted by least squares: b is the slope of reward on tokens with each prompt's and each
candidate's mean taken from both. Candidate c at the mean length of all answers earns

    mean_p r_cp - b (mean_p L_cp - mean L).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.records.answer_figures import LengthEffect

Matrix = NDArray[np.float64]
"""[C, P]."""

SEED = 0
"""Of the bootstrap: the same prompts for every value."""

NEGLIGIBLE = 1e-20
"""Share of a sum of squares that rounding leaves of nothing."""


def length_effect(
    rewards: Matrix, tokens: Matrix, resamples: int, confidence: float
) -> tuple[LengthEffect, list[float | None]]:
    """The effect, and the mean reward [C] of every candidate at equal length.

    Both are None where lengths do not vary within prompts and candidates, or a reward is not
    finite. The interval resamples prompts and leaves the means that are taken as they are.
    """
    nothing = LengthEffect(None, None, None, None, None)
    if not np.isfinite(rewards).all():
        return nothing, [None] * len(rewards)
    of_rewards, of_tokens = _within(rewards), _within(tokens)
    squares = (of_tokens**2).sum(0)
    between = _correlation(rewards.mean(1), tokens.mean(1)) if len(rewards) > 2 else None
    if squares.sum() <= NEGLIGIBLE * max((tokens**2).sum(), 1.0):
        return LengthEffect(None, None, None, None, between), [None] * len(rewards)
    products = (of_rewards * of_tokens).sum(0)
    slope = float(products.sum() / squares.sum())
    low, high = _interval(products, squares, resamples, confidence)
    within = _correlation(of_rewards.ravel(), of_tokens.ravel())
    adjusted = rewards.mean(1) - slope * (tokens.mean(1) - tokens.mean())
    return LengthEffect(slope, low, high, within, between), adjusted.tolist()


def _within(numbers: Matrix) -> Matrix:
    """Less the means of the prompt and of the candidate."""
    centred = numbers - numbers.mean(0)
    return np.asarray(centred - centred.mean(1, keepdims=True))


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    x, y = one - one.mean(), other - other.mean()
    sizes = [float((each**2).sum()) for each in (x, y)]
    floor = [NEGLIGIBLE * max(float((each**2).sum()), 1e-300) for each in (one, other)]
    if any(size <= least for size, least in zip(sizes, floor, strict=True)):
        return None
    return float(np.clip((x * y).sum() / np.sqrt(sizes[0] * sizes[1]), -1, 1))


def _interval(
    products: NDArray[np.float64], squares: NDArray[np.float64], resamples: int, confidence: float
) -> tuple[float, float] | tuple[None, None]:
    """Percentiles of sum products / sum squares [P each]; none where a resample has no lengths."""
    prompts = len(products)
    draws = np.random.default_rng(SEED).multinomial(prompts, [1 / prompts] * prompts, resamples)
    below = draws @ squares
    if prompts < 2 or not (below > NEGLIGIBLE * squares.sum()).all():
        return None, None
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws @ products / below, [tail, 1 - tail])
    return float(low), float(high)
