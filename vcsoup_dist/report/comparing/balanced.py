"""Balanced soups of runs, each picked from as many candidates of every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.records.summary import Scale
from vcsoup_dist.report.comparing.finished import FinishedRun
from vcsoup_dist.report.statistics import fronts
from vcsoup_dist.report.statistics.crossed import Errors, independent, mean_errors
from vcsoup_dist.report.statistics.evaluated import Evaluated, same_soup
from vcsoup_dist.report.statistics.rows import samples_of
from vcsoup_dist.report.tables import mixture

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BalancedValue:
    """One value of a run's balanced soup, against the first run's."""

    mean: float
    difference: float | None
    """None for the first run."""
    low: float | None
    """Of the interval for these soups as if named beforehand, for all runs and values together."""
    high: float | None


@dataclass(frozen=True)
class Balanced:
    """What is best at its worst value in a run, on the first run's scale."""

    run: str
    candidate: str
    picked_from: int
    """As many candidates, theta_0 among them; the more, the more the pick is flattered."""
    values: dict[str, BalancedValue]


def balanced_soups(runs: Sequence[FinishedRun], confidence: float) -> list[Balanced]:
    """Of runs with the same values and axes, on the first one's scale."""
    scale, values = runs[0].summary.scale, runs[0].summary.values
    of_one = 1 - (1 - confidence) / (len(values) * (len(runs) - 1))  # Bonferroni's
    candidates = [_candidates(run) for run in runs]
    groups = [_best(each, scale) for each in candidates]
    found = []
    for run, among, group in zip(runs, candidates, groups, strict=True):
        cells = {}
        for value in values:
            ours, theirs = (samples_of(each, value) for each in (group, groups[0]))
            difference = float(ours.mean() - theirs.mean())
            width = float(_difference_errors(ours, theirs, run, runs[0]).half_width(of_one))
            known = run is not runs[0] and bool(np.isfinite(width))
            cells[value] = BalancedValue(
                mean=float(ours.mean()),
                difference=None if run is runs[0] else difference,
                low=difference - width if known else None,
                high=difference + width if known else None,
            )
        found.append(Balanced(run.name, _label(group[0]), len(among), cells))
    return found


def _candidates(run: FinishedRun) -> list[list[Evaluated]]:
    return same_soup(run.evaluated, run.summary.axes)


def _best(groups: Sequence[list[Evaluated]], scale: Scale) -> list[Evaluated]:
    means = [[float(samples_of(each, value).mean()) for value in scale.low] for each in groups]
    low, high = (list(side.values()) for side in (scale.low, scale.high))
    return groups[fronts.balanced(fronts.normalise(means, low, high))]


def _difference_errors(ours: Array, theirs: Array, run: FinishedRun, other: FinishedRun) -> Errors:
    if run.prompts == other.prompts:
        return mean_errors([ours, -theirs])
    return independent(mean_errors([ours]), mean_errors([theirs]))


def _label(one: Evaluated) -> str:
    return "theta_0" if one.method is None else f"{one.method}: {mixture(one.weights, '.3g')}"
