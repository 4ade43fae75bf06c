"""Models against theta_0 on the same prompts: differences of means, and win rates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.records.summary import AgainstStart
from vcsoup_dist.report.statistics.crossed import mean_errors
from vcsoup_dist.report.statistics.students_t import t_quantile

Array = NDArray[np.float64]


def against_start(rewards: Array, start: Array, confidence: float) -> AgainstStart:
    """One value's rewards [S, P] of a model's seeds against theta_0's [P]; larger is better."""
    gains = rewards - start
    mean = float(gains.mean())
    width = float(mean_errors([gains]).half_width(confidence))
    wins = (gains > 0) + 0.5 * (gains == 0)
    low, high = share_interval(wins, confidence)
    known = bool(np.isfinite(width))
    return AgainstStart(
        difference=mean,
        low=mean - width if known else None,
        high=mean + width if known else None,
        win_rate=float(wins.mean()),
        win_low=low,
        win_high=high,
    )


def share_interval(samples: Array, confidence: float) -> tuple[float | None, float | None]:
    """Wilson's interval for the mean of `samples` [S, P], each from 0 to 1; None for one prompt.

    Its number of trials is that which would give the mean's error. Where all samples are equal
    there is no error to see: then the prompts are the trials.
    """
    prompts = samples.shape[-1]
    if prompts < 2:
        return None, None
    share = float(samples.mean())
    variance = share * (1 - share)
    width = float(mean_errors([samples]).half_width(confidence))
    if width > 0 and variance > 0:
        spread = width**2 / variance
    else:
        spread = float(t_quantile((1 + confidence) / 2, prompts - 1)) ** 2 / prompts
    middle = (share + spread / 2) / (1 + spread)
    half = np.sqrt(spread * variance + spread**2 / 4) / (1 + spread)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
