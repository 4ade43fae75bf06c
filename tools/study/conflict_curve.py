"""The numbers of "How conflict matters", from the stored rewards of all runs' answers.

Hypervolumes of all shares are on one fixed scale that no result can move: the whole range that the
two rewards can take, with the worst point as the reference. `complete` lies in [0, 1]; `short` in
[-4, 0], since an answer has at most 80 tokens and a point is 20 words. So far a reference is hard
on filters: ends of a front that reach further gain volume whatever they cost the other value.
A report's own scale, of theta_0 and the policies of `vc_soup`, counts the ends less, and would be
another one for each share; the differences on it are kept as `own_scale`. So are differences in
the rewards' own units of the even mix, weights (1/2, 1/2), which need no scale at all.

All runs answer the same prompts, so differences are paired by prompts; every seed has data of its
own, so intervals over seeds hold the draw of the data as well as training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from conflict_data import VALUES
from numpy.typing import NDArray

from vcsoup_dist.records.summary import Scale
from vcsoup_dist.report.statistics.comparisons import confidence_of_one
from vcsoup_dist.report.statistics.crossed import Errors, mean_errors, resampled_errors
from vcsoup_dist.report.statistics.evaluated import Evaluated, Shared
from vcsoup_dist.report.statistics.methods import Candidates, candidates_of, volumes_by_method
from vcsoup_dist.report.statistics.scale import choose_scale
from vcsoup_dist.report.statistics.volumes import Volumes, prompt_shares

CONFIDENCE = 0.95
RESAMPLES = 2000
LONGEST = 80
"""Tokens of an answer, and so the most words: `evaluation.max_new_tokens` of conflict.yaml."""
WORST = {"complete": 0.0, "short": -LONGEST / 20}
SCALE = Scale(
    low=WORST, high={"complete": 1.0, "short": 0.0}, reference=WORST,
    reference_scaled={"complete": 0.0, "short": 0.0}, method=None, policies_only=False,
)  # fmt: skip
EVEN = (0.5, 0.5)
STRONG = 0.5
"""From this share on, data have at least as many conflicting pairs as others."""
PAIRS = (
    ("vc_soup", "rewarded_soup"),
    ("vc_soup", "random"),
    ("strict", "rewarded_soup"),
    ("strict", "random_strict"),
)

ByShare = Mapping[float, Mapping[str, Volumes]]


@dataclass(frozen=True)
class Difference:
    """Of the first method to the second, with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """Two methods at one share of conflicting pairs."""

    share: float
    hypervolume: Difference
    """On `SCALE`; the intervals of a curve hold together."""
    own_scale: Difference
    """The same on the scale that a report of this share would take."""
    even_mix: dict[str, Difference]
    """Value -> difference of its mean reward, of the soups with weights (1/2, 1/2)."""


@dataclass(frozen=True)
class Curve:
    """The gain of one method over another against the share of conflicting pairs."""

    first: str
    second: str
    points: tuple[Point, ...]
    strong_conflict: Difference | None
    """Mean of the differences at shares of `STRONG` or more; None without such a share."""
    slope: Difference | None
    """Least squares, per unit of share; None for one share."""


@dataclass(frozen=True)
class Level:
    """One method at one share."""

    share: float
    method: str
    hypervolume: float
    """On `SCALE`, less its bias."""
    by_seed: tuple[float, ...]
    """As measured."""
    even_mix: dict[str, float]
    """Value -> mean reward of the soup with weights (1/2, 1/2)."""


@dataclass(frozen=True)
class Verdict:
    """What the protocol says of one filter."""

    filter: str
    gain: str
    """`supported`, `refuted` or `undecided`: the mean gain at strong conflict over both rivals."""
    grows: bool
    """Whether the gain over both grows with the share of conflicting pairs."""


def verdicts(curves: Sequence[Curve]) -> list[Verdict]:
    """Of every filter; none of one without a curve over strong conflict and several shares."""
    found = []
    for name in dict.fromkeys(curve.first for curve in curves):
        own = [curve for curve in curves if curve.first == name]
        gains = [curve.strong_conflict for curve in own if curve.strong_conflict is not None]
        slopes = [curve.slope for curve in own if curve.slope is not None]
        if len(gains) < len(own) or len(slopes) < len(own):
            continue
        gain = "undecided"
        if all(each.low > 0 for each in gains):
            gain = "supported"
        elif any(each.high < 0 for each in gains):
            gain = "refuted"
        found.append(Verdict(name, gain, all(each.low > 0 for each in slopes)))
    return found


class Measured:
    """All answers of the study, by share: hypervolumes on both scales, and the even mixes."""

    def __init__(self, evaluated: Mapping[float, Sequence[Evaluated]]) -> None:
        prompts = len(next(iter(evaluated.values()))[0].rewards[VALUES[0]])
        shared = Shared(VALUES, VALUES, prompts)
        methods = dict.fromkeys(each.method for each in next(iter(evaluated.values())))
        self.methods = [method for method in methods if method is not None]
        resampled = prompt_shares(prompts, RESAMPLES, 0)
        self.candidates = {
            share: {method: candidates_of(each, method, shared) for method in self.methods}
            for share, each in evaluated.items()
        }
        self.fixed: ByShare = {
            share: volumes_by_method(each, resampled, SCALE)
            for share, each in self.candidates.items()
        }
        self.own: ByShare = {
            share: volumes_by_method(each, resampled, choose_scale(evaluated[share], shared))
            for share, each in self.candidates.items()
        }

    def curves(self) -> list[Curve]:
        """Of those of `PAIRS` that were run: a pilot runs fewer methods."""
        return [self.curve(pair) for pair in PAIRS if set(pair) <= set(self.methods)]

    def curve(self, pair: tuple[str, str]) -> Curve:
        """Of two methods over all shares."""
        fixed, own = _differences(self.fixed, pair), _differences(self.own, pair)
        shares = np.array(list(self.fixed))
        strong = shares[shares >= STRONG]
        off = shares - shares.mean()
        return Curve(
            *pair,
            points=tuple(
                Point(share, fixed[share], own[share], self._even(share, pair)) for share in fixed
            ),
            strong_conflict=_weighted(self.fixed, pair, dict.fromkeys(strong, 1 / len(strong)))
            if len(strong)
            else None,
            slope=_weighted(self.fixed, pair, dict(zip(shares, off / (off**2).sum(), strict=True)))
            if len(shares) > 1
            else None,
        )

    def levels(self) -> list[Level]:
        """Every method at every share."""
        return [
            Level(
                share,
                method,
                volumes.corrected,
                tuple(volumes.measured.tolist()),
                {
                    value: float(even_mix(self.candidates[share][method], j).mean())
                    for j, value in enumerate(VALUES)
                },
            )
            for share, each in self.fixed.items()
            for method, volumes in each.items()
        ]

    def _even(self, share: float, pair: tuple[str, str]) -> dict[str, Difference]:
        found = {}
        for j, value in enumerate(VALUES):
            first, second = (even_mix(self.candidates[share][method], j) for method in pair)
            errors = mean_errors([first, -second])
            found[value] = _difference(float(first.mean() - second.mean()), errors, CONFIDENCE)
        return found


def even_mix(seeds: Mapping[int, Candidates], value: int) -> NDArray[np.float64]:
    """[S, P]: rewards of one value that the soups with weights (1/2, 1/2) earn."""
    found = []
    for each in seeds.values():
        (place,) = np.flatnonzero(np.isclose(each.weights, EVEN).all(axis=1))
        found.append(each.rewards[place, value])
    return np.array(found)


def _differences(volumes: ByShare, pair: tuple[str, str]) -> dict[float, Difference]:
    """At every share; the intervals hold together."""
    named = {
        f"{share}/{method}": each[method] for share, each in volumes.items() for method in pair
    }
    pairs = [(f"{share}/{pair[0]}", f"{share}/{pair[1]}") for share in volumes]
    of_one = confidence_of_one(named, pairs, CONFIDENCE)
    return {
        share: _difference(
            named[one].corrected - named[other].corrected,
            named[one].errors_before(named[other]),
            of_one,
        )
        for share, (one, other) in zip(volumes, pairs, strict=True)
    }


def _weighted(
    volumes: ByShare, pair: tuple[str, str], weights: Mapping[float, float]
) -> Difference:
    """sum_s weights[s] (first_s - second_s)."""
    parts = [
        (sign * weight, volumes[share][method])
        for share, weight in weights.items()
        for method, sign in zip(pair, (1, -1), strict=True)
    ]
    errors = resampled_errors(
        [factor * each.drawn for factor, each in parts],
        [factor * each.measured for factor, each in parts],
        parts[0][1].prompts,
    )
    value = sum(factor * each.corrected for factor, each in parts)
    return _difference(float(value), errors, CONFIDENCE)


def _difference(value: float, errors: Errors, confidence: float) -> Difference:
    width = float(errors.half_width(confidence))
    return Difference(value, value - width, value + width)
