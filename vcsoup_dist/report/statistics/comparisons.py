"""Differences of methods' hypervolumes, with intervals that hold for all pairs together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.records.summary import Comparison
from vcsoup_dist.report.statistics.students_t import tail
from vcsoup_dist.report.statistics.volumes import Volumes

Array = NDArray[np.float64]

DRAWS = 20_000  # of the largest of all pairs' errors


def compare_all(volumes: Mapping[str, Volumes], confidence: float) -> tuple[Comparison, ...]:
    """Every pair of methods, the one with the larger hypervolume first; biases are taken off.

    With `confidence` all intervals hold the true differences together. None have bounds where
    there is one prompt.
    """
    names = sorted(volumes, key=lambda name: -volumes[name].corrected)  # stable for equal ones
    return compare_pairs(volumes, list(combinations(names, 2)), confidence)


def compare_pairs(
    volumes: Mapping[str, Volumes], pairs: Sequence[tuple[str, str]], confidence: float
) -> tuple[Comparison, ...]:
    """These pairs, whose first has the larger hypervolume; their intervals hold together."""
    of_one = confidence_of_one(volumes, pairs, confidence)
    return tuple(_compare(volumes, pair, of_one) for pair in pairs)


def confidence_of_one(
    volumes: Mapping[str, Volumes], pairs: Sequence[tuple[str, str]], confidence: float
) -> float:
    """What each pair's interval must have for all pairs to have `confidence` together.

    The errors of pairs are correlated: they share methods and prompts. The quantile of the largest
    |error / standard error| is that of normal numbers with the same correlation (single-step max-T;
    Westfall and Young 1993), drawn with one seed.
    """
    if len(pairs) < 2 or min(each.prompts for each in volumes.values()) < 2:
        return confidence
    names = list(volumes)
    drawn = np.array([each.drawn.mean(axis=0) for each in volumes.values()])
    seeds = [float(each.errors.seeds) for each in volumes.values()]
    covariance = np.cov(drawn) + np.diag(seeds)
    contrast = np.zeros((len(pairs), len(names)))
    for row, (first, second) in zip(contrast, pairs, strict=True):
        row[names.index(first)], row[names.index(second)] = 1, -1
    variance = np.einsum("km,mn,kn->k", contrast, covariance, contrast)
    differ = variance > 0  # two names of one model never differ
    if not differ.any():
        return confidence
    contrast = contrast[differ] / np.sqrt(variance[differ])[:, None]
    normal = np.random.default_rng(0).standard_normal((DRAWS, len(names)))
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    largest = np.abs(normal @ (contrast @ root).T).max(axis=1)
    return max(confidence, 1 - 2 * tail(float(np.quantile(largest, confidence))))


def _compare(
    volumes: Mapping[str, Volumes], names: tuple[str, str], confidence: float
) -> Comparison:
    first, second = (volumes[name] for name in names)
    difference = first.corrected - second.corrected
    width = float(first.errors_before(second).half_width(confidence))
    known = bool(np.isfinite(width))
    return Comparison(
        *names,
        difference=difference,
        low=difference - width if known else None,
        high=difference + width if known else None,
    )
