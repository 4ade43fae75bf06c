"""A method's hypervolume: of every seed, as measured and in every resample of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.records.summary import Scale
from vcsoup_dist.report.statistics import fronts
from vcsoup_dist.report.statistics.crossed import Errors, resampled_errors
from vcsoup_dist.report.statistics.hypervolumes import hypervolumes

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Volumes:
    """Hypervolumes of one method's seeds, on a fixed scale."""

    measured: Array
    """[S]"""
    drawn: Array
    """[S, B]: the same of every resample of the prompts, which is one for all methods and seeds."""
    prompts: int

    @property
    def bias(self) -> float:
        """How much too large the mean over the seeds is, by the bootstrap.

        A front is a maximum, so noise can only lift it: resampled prompts lift it once more.
        """
        return float((self.drawn.mean(axis=1) - self.measured).mean())

    @property
    def corrected(self) -> float:
        """The mean over the seeds, less its bias."""
        return float(self.measured.mean()) - self.bias

    @property
    def errors(self) -> Errors:
        """Of the mean over the seeds."""
        return resampled_errors([self.drawn], [self.measured], self.prompts)

    @property
    def shown(self) -> float:
        """`corrected`, or 0 where the bias is larger than what was measured: no volume is less."""
        return max(0.0, self.corrected)

    def interval(self, confidence: float) -> tuple[float | None, float | None]:
        """Of the true hypervolume, which is not below 0; None for one prompt."""
        width = float(self.errors.half_width(confidence))
        if not np.isfinite(width):
            return None, None
        return max(0.0, self.corrected - width), max(0.0, self.corrected + width)

    def errors_before(self, other: Volumes) -> Errors:
        """Of the difference to `other`'s mean.

        Where the prompts are others, so are the resamples, and the fewer decide about freedom.
        """
        prompts = min(self.prompts, other.prompts)
        draws, measured = [self.drawn, -other.drawn], [self.measured, -other.measured]
        return resampled_errors(draws, measured, prompts)


def prompt_shares(prompts: int, resamples: int, seed: int) -> Array:
    """[P, B]: how much each prompt counts in each resample of P prompts with replacement."""
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return np.asarray(counts.T / prompts, dtype=np.float64)


def volumes_of(seeds: Sequence[Array], shares: Array, scale: Scale) -> Volumes:
    """Of a method's rewards [C, V, P] by seed, whose numbers of candidates C may differ.

    shares [P, B]: of `prompt_shares`. Holds the resampled means of one seed at a time.
    """
    low, high, reference = (
        np.array(list(side.values())) for side in (scale.low, scale.high, scale.reference_scaled)
    )

    def volume(means: Array) -> Array:  # [..., C, V]
        flat = fronts.normalise(means.reshape(-1, means.shape[-1]), low, high)
        return hypervolumes(flat.reshape(means.shape), reference)

    measured = [volume(rewards.mean(axis=-1)) for rewards in seeds]
    drawn = [volume(np.moveaxis(rewards @ shares, -1, 0)) for rewards in seeds]
    return Volumes(np.array(measured), np.array(drawn), len(shares))
