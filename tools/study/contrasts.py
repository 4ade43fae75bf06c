"""Differences of hypervolumes that were planned, with intervals that hold for all of them.

The statistics are the report's (docs/results/intervals.md): prompts and seeds crossed, biases taken
off, one scale that theta_0 and the policies of the baseline span. Only the set of differences is
the study's own: those that the protocol names, and not every pair of methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.records.summary import Scale
from vcsoup_dist.report.statistics.comparisons import compare_pairs, confidence_of_one
from vcsoup_dist.report.statistics.crossed import Errors
from vcsoup_dist.report.statistics.evaluated import Evaluated, check_shared
from vcsoup_dist.report.statistics.methods import (
    Candidates,
    candidates_of,
    thinned,
    volumes_by_method,
)
from vcsoup_dist.report.statistics.scale import choose_scale
from vcsoup_dist.report.statistics.students_t import t_quantile
from vcsoup_dist.report.statistics.summarise import BOOTSTRAP_SEED
from vcsoup_dist.report.statistics.volumes import Volumes, prompt_shares

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 2000

BySeed = Mapping[str, Mapping[int, Candidates]]

# At equal numbers of candidates and of training steps.
EQUAL = (
    ("vc_soup", "rewarded_soup"),
    ("strict", "rewarded_soup"),
    ("strict", "random"),
)
BASELINE = "rewarded_soup"
RIVAL = "scalarised"
SOUPS = ("vc_soup", "strict")


@dataclass(frozen=True)
class Contrast:
    """The first method's hypervolume less the second's."""

    first: str
    second: str
    kind: str
    """What is equal between the two."""
    candidates: tuple[int, int]
    difference: float
    low: float
    high: float
    detectable: float
    """The smallest true difference that would be seen with a probability of 80 %."""

    @property
    def side(self) -> int:
        """1 where the whole interval lies above 0, -1 where it lies below, else 0."""
        return int(self.low > 0) - int(self.high < 0)


VERDICTS = {1: "supported", 0: "undecided", -1: "refuted"}


def verdict(of_classifiers: Contrast, of_words: Contrast) -> str:
    """As the protocol defines it: the classifiers', unless the second judges show the opposite."""
    opposite = of_classifiers.side * of_words.side < 0
    return VERDICTS[0 if opposite else of_classifiers.side]


def planned(evaluated: Sequence[Evaluated]) -> list[Contrast]:
    """All planned differences of a run, on the baseline's scale.

    Intervals hold together within each of three groups, those of one `kind`; not over the groups,
    nor over judges. ValueError where another method spans the scale or one is missing.
    """
    shared = check_shared(evaluated)
    made = {one.method for one in evaluated}
    if missing := [name for name in (*SOUPS, BASELINE, RIVAL, "random") if name not in made]:
        raise ValueError(f"planned differences need {', '.join(missing)} too")
    scale = choose_scale(evaluated, shared)
    if scale.method != BASELINE:
        raise ValueError(f"{scale.method} spans the scale; {BASELINE} must come first")
    return differences(evaluated, scale)


def differences(evaluated: Sequence[Evaluated], scale: Scale) -> list[Contrast]:
    """The same differences on any scale."""
    every, shares = _candidates(evaluated)
    pairs = [(soup, RIVAL) for soup in SOUPS]
    rivals = {name: every[name] for name in (*SOUPS, RIVAL)}
    found = at_equal_cost(evaluated, scale, EQUAL)
    for kind, some in (
        ("equal numbers", thinned(rivals)[0]),
        ("equal cost", rivals | {RIVAL: _corners(rivals[RIVAL])}),
    ):
        found += _contrasts(kind, pairs, some, volumes_by_method(some, shares, scale))
    return found


def at_equal_cost(
    evaluated: Sequence[Evaluated], scale: Scale, pairs: Sequence[tuple[str, str]]
) -> list[Contrast]:
    """Of methods with equal numbers of candidates and of training steps."""
    every, shares = _candidates(evaluated)
    some = {name: every[name] for pair in pairs for name in pair}
    volumes = volumes_by_method(some, shares, scale)
    return _contrasts("equal numbers and cost", pairs, some, volumes)


def _candidates(evaluated: Sequence[Evaluated]) -> tuple[BySeed, NDArray[np.float64]]:
    """Those of every method, and the shares of prompts in all resamples."""
    shared = check_shared(evaluated)
    methods = dict.fromkeys(one.method for one in evaluated if one.method is not None)
    every = {str(method): candidates_of(evaluated, str(method), shared) for method in methods}
    return every, prompt_shares(shared.prompts, RESAMPLES, BOOTSTRAP_SEED)


def _corners(seeds: Mapping[int, Candidates]) -> dict[int, Candidates]:
    """The policies of a single value, which cost as much as those of a soup."""
    found = {}
    for seed, each in seeds.items():
        kept = each.weights.max(axis=1) == 1
        found[seed] = Candidates(each.weights[kept], each.rewards[kept])
    return found


def _contrasts(
    kind: str, pairs: Sequence[tuple[str, str]], of: BySeed, volumes: Mapping[str, Volumes]
) -> list[Contrast]:
    of_one = confidence_of_one(volumes, pairs, CONFIDENCE)
    rows = []
    for each in compare_pairs(volumes, pairs, CONFIDENCE):
        errors = volumes[each.first].errors_before(volumes[each.second])
        rows.append(
            Contrast(
                each.first,
                each.second,
                kind,
                (_size(of[each.first]), _size(of[each.second])),
                each.difference,
                float(each.low if each.low is not None else "nan"),
                float(each.high if each.high is not None else "nan"),
                detectable(errors, of_one),
            )
        )
    return rows


def detectable(errors: Errors, confidence: float) -> float:
    """The smallest true difference whose interval lies above 0 with a probability of 80 %."""
    one_error = float(errors.prompts + errors.seeds) ** 0.5
    return float(errors.half_width(confidence)) + float(t_quantile(POWER, 1e6)) * one_error


def _size(seeds: Mapping[int, Candidates]) -> int:
    return len(next(iter(seeds.values())).weights)
