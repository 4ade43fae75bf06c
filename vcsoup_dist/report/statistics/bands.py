"""Simultaneous confidence bands of several means over the same prompts and seeds."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

CHUNK = 1 << 22  # numbers drawn at once, so that memory does not grow with the prompts
FEW_SEEDS = 8  # below it a resample of seeds spreads too little
DRAWS = 20_000  # of Student's t, for its largest of several


@dataclass(frozen=True)
class Band:
    """K means, and a band that holds all true ones together. In the samples' units."""

    mean: Array
    """[K]"""
    low: Array
    """[K]"""
    high: Array
    """[K]"""


def simultaneous_band(samples: ArrayLike, resamples: int, confidence: float, seed: int) -> Band:
    """The means over seeds and prompts of `samples` [S, K, P], with their sup-t band.

    mean_k ± q sd_k, where sd_k is the bootstrap's standard deviation, and q the quantile of
    max_k |mean*_k - mean_k| / sd_k at `confidence`, over `resamples` draws mean* (Montiel Olea and
    Plagborg-Moller 2019). A draw takes prompts with replacement, the same for all k and seeds, and
    where there are several seeds, seeds too. For few prompts q is larger as Student's t is than the
    normal distribution. With fewer than FEW_SEEDS the band is at least Student's t over the seeds'
    means, for the largest of K independent ones.

    One prompt has no band: ValueError, as for numbers that are not finite.
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 3 or min(values.shape) < 1 or values.shape[2] < 2:
        raise ValueError(f"samples must be [seeds, means, 2 or more prompts], not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("samples must be finite")
    seeds, _, prompts = values.shape
    mean = values.mean(axis=(0, 2))
    off = _resampled(values, resamples, np.random.default_rng(seed)) - mean
    spread = off.std(axis=0)
    ratios = np.divide(np.abs(off), spread, out=np.zeros_like(off), where=spread > 0)
    quantile = np.quantile(ratios.max(axis=1), confidence)
    few = _largest_t(prompts - 1, len(mean), confidence) / _largest_t(None, len(mean), confidence)
    width = quantile * few * spread * np.sqrt(prompts / (prompts - 1))
    if 1 < seeds < FEW_SEEDS:
        error = values.mean(axis=2).std(axis=0, ddof=1) / np.sqrt(seeds)
        width = np.maximum(width, _largest_t(seeds - 1, len(mean), confidence) * error)
    return Band(mean, mean - width, mean + width)


def _resampled(values: Array, resamples: int, draw: np.random.Generator) -> Array:
    """[resamples, K]: the means of samples [S, K, P] over drawn prompts and seeds."""
    seeds, means, prompts = values.shape
    rows = max(1, CHUNK // prompts)
    found = []
    for done in range(0, resamples, rows):
        count = min(rows, resamples - done)
        of_prompts = draw.multinomial(prompts, np.full(prompts, 1 / prompts), size=count)
        of_seeds = draw.multinomial(seeds, np.full(seeds, 1 / seeds), size=count)
        over_prompts = (values.reshape(-1, prompts) @ (of_prompts / prompts).T).T  # [count, S K]
        by_seed = over_prompts.reshape(count, seeds, means)
        found.append((by_seed * (of_seeds / seeds)[:, :, None]).sum(axis=1))
    return np.concatenate(found)


@functools.cache
def _largest_t(freedom: int | None, count: int, confidence: float) -> float:
    """Quantile of the largest |t| of `count` independent Student's t; None: of normal numbers.

    From draws of one seed, the same normal numbers for all degrees of freedom.
    """
    draw = np.random.default_rng(0)
    drawn = np.abs(draw.standard_normal((DRAWS, count)))
    if freedom is not None:
        drawn /= np.sqrt(draw.chisquare(freedom, size=(DRAWS, count)) / freedom)
    return float(np.quantile(drawn.max(axis=1), confidence))
