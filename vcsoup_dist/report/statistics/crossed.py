"""Intervals of what is averaged over prompts and seeds, which are crossed.

All seeds of all methods answer the same prompts; each method has seeds of its own. So an estimate
has two errors: that of the prompts, which methods share, and that of the seeds, which are
independent. Each is given Student's t with its own degrees of freedom, and the two half-widths are
added at right angles. Why not the plain bootstrap, nor the wider of two intervals:
docs/results/intervals.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vcsoup_dist.report.statistics.students_t import t_quantile

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SeedVariance:
    """What the seeds of one method add to the variance of estimates [...]."""

    between: Array
    """Variance of the mean over the seeds, from how the seeds differ."""
    by_prompts: Array
    """The part of it that prompts make: it is in the prompts' variance already."""
    seeds: int


@dataclass(frozen=True)
class Errors:
    """Variances of estimates [...]; `prompts` is NaN for one prompt."""

    prompts: Array
    prompt_freedom: float | Array
    of_seeds: tuple[SeedVariance, ...]
    """Of each method that has several seeds."""

    @property
    def seeds(self) -> Array:
        """What seeds add beyond the prompts' variance."""
        beyond = sum((e.between - e.by_prompts for e in self.of_seeds), np.zeros(()))
        return np.maximum(beyond, np.zeros_like(self.prompts))

    def half_width(self, confidence: float) -> Array:
        """Of the interval that holds the true number with `confidence`, estimate by estimate."""
        width = self.prompts * _t(confidence, self.prompt_freedom) ** 2
        if self.of_seeds:
            between = sum((e.between for e in self.of_seeds), np.zeros(()))
            spent = sum((e.between**2 / (e.seeds - 1) for e in self.of_seeds), np.zeros(()))
            known = spent > 0
            freedom = np.where(known, between**2 / np.where(known, spent, 1.0), 1.0)  # Welch's
            width = width + self.seeds * _t(confidence, freedom) ** 2
        return np.asarray(np.sqrt(width))


def mean_errors(samples: Sequence[ArrayLike]) -> Errors:
    """Of sum_m mean(samples_m): samples_m [..., S_m, P], with the same prompts in all.

    A difference of two methods has the second's numbers negated. The variances are those of a
    two-way layout with one number a cell.
    """
    arrays = [np.asarray(each, np.float64) for each in samples]
    prompts = arrays[0].shape[-1]
    by_prompt = np.sum([each.mean(axis=-2) for each in arrays], axis=0)
    return Errors(
        prompts=_variance(by_prompt, -1) / prompts,
        prompt_freedom=float(max(prompts - 1, 1)),
        of_seeds=tuple(_of_seeds(each) for each in arrays if each.shape[-2] > 1),
    )


def independent(first: Errors, second: Errors) -> Errors:
    """Of the difference of two estimates that share neither prompts nor seeds."""
    fewest = np.minimum(first.prompt_freedom, second.prompt_freedom)
    of_seeds = first.of_seeds + second.of_seeds
    return Errors(first.prompts + second.prompts, fewest, of_seeds)


def _of_seeds(samples: Array) -> SeedVariance:
    *_, seeds, prompts = samples.shape
    by_seed = samples.mean(axis=-1)
    off = samples - by_seed[..., None] - samples.mean(axis=-2, keepdims=True)
    off = off + by_seed.mean(axis=-1)[..., None, None]
    together = (off**2).sum(axis=(-2, -1)) / max((seeds - 1) * (prompts - 1), 1)
    return SeedVariance(_variance(by_seed, -1) / seeds, together / (seeds * prompts), seeds)


def resampled_errors(draws: Sequence[Array], measured: Sequence[Array], prompts: int) -> Errors:
    """Of sum_m mean(measured_m), for numbers that are no means over prompts.

    measured_m [S_m]: of each seed; draws_m [S_m, B]: the same in every resample of the prompts,
    which are the same for all m. A difference has the second's numbers negated.
    """
    unbiased = prompts / (prompts - 1) if prompts > 1 else np.nan
    found = []
    for drawn, whole in zip(draws, measured, strict=True):
        if (seeds := len(whole)) > 1:
            by_prompts = _variance(drawn - whole[:, None], 0).mean() * unbiased / seeds
            found.append(SeedVariance(_variance(whole, 0) / seeds, by_prompts, seeds))
    total = np.sum([drawn.mean(axis=0) for drawn in draws], axis=0)
    return Errors(np.asarray(total.var() * unbiased), float(max(prompts - 1, 1)), tuple(found))


def _t(confidence: float, freedom: float | Array) -> Array:
    return t_quantile((1 + confidence) / 2, freedom)


def _variance(samples: Array, axis: int) -> Array:
    """Unbiased; NaN of one number."""
    if samples.shape[axis] < 2:
        return np.full(np.delete(samples.shape, axis), np.nan)
    return np.asarray(samples.var(axis=axis, ddof=1))
