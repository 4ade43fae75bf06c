"""Bootstrap intervals of a mean reward over prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 1 << 22  # numbers drawn at once, so that memory does not grow with the prompts


def bootstrap_mean(
    samples: ArrayLike, resamples: int, confidence: float, seed: int
) -> tuple[float, float, float]:
    """(mean, low, high) of `samples` [P], one number per prompt, by the percentile bootstrap.

    Prompts are drawn with replacement `resamples` times; low and high cut off (1 - confidence)/2
    of the resampled means on either side. The same seed draws the same prompts, whatever the
    samples: soups evaluated on the same prompts are resampled alike. In the reward's units.
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"samples must be a vector of at least one number, not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("samples must be finite")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"cannot take {resamples} resamples at confidence {confidence}")
    draw = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(values))
    means = np.concatenate(
        [
            values[
                draw.integers(len(values), size=(min(rows, resamples - done), len(values)))
            ].mean(1)
            for done in range(0, resamples, rows)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(values.mean()), float(low), float(high)
