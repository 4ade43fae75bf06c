"""Finished runs on the first one's scale: their hypervolumes at equal numbers of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vcsoup_dist.records.summary import Comparison, Scale
from vcsoup_dist.report.comparing.balanced import Balanced, balanced_soups
from vcsoup_dist.report.comparing.check import check_comparable, differences
from vcsoup_dist.report.comparing.finished import FinishedRun
from vcsoup_dist.report.statistics.comparisons import compare_pairs
from vcsoup_dist.report.statistics.evaluated import Shared
from vcsoup_dist.report.statistics.methods import Candidates, candidates_of, thinned
from vcsoup_dist.report.statistics.volumes import Volumes, prompt_shares, volumes_of


@dataclass(frozen=True)
class Contestant:
    """One method of one run, at as many candidates as all others."""

    name: str
    """`RUN: METHOD`"""
    candidates: int
    """As many as it has, before it was thinned."""
    seeds: int
    hypervolume: float
    """Less its bias, on the first run's scale."""
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RunsCompared:
    """What `vcsoup compare` says; its fields are the keys of `--json`."""

    runs: tuple[str, ...]
    scale: Scale
    """The first run's."""
    prompts: dict[str, int]
    confidence: float
    """The first run's."""
    notes: tuple[str, ...]
    candidates: int
    """Of each seed of each method, after thinning; 0 where no run has a method."""
    like: str | None
    """The method with the fewest, whose weights the others' nearest candidates are taken for."""
    methods: tuple[Contestant, ...]
    """The largest hypervolume first."""
    pairs: tuple[Comparison, ...]
    """Of methods of different runs; all intervals hold together."""
    balanced: tuple[Balanced, ...]
    """Picked on the prompts that they are compared on, which no interval counts."""


def compare_runs(runs: Sequence[FinishedRun]) -> RunsCompared:
    """Two or more runs; UserError where they do not compare."""
    check_comparable(runs)
    first = runs[0].summary
    found = [_in_order(run, runs) for run in runs]
    whole = {
        f"{run.name}: {method.method}": candidates_of(run.evaluated, method.method, _shared(runs))
        for run in found
        for method in run.summary.methods
    }
    thin, like = thinned(whole) if whole else ({}, None)
    volumes = _volumes(found, thin, first.scale, first.resamples)
    of_run = {f"{r.name}: {m.method}": r.name for r in runs for m in r.summary.methods}
    order = sorted(volumes, key=lambda name: -volumes[name].corrected)
    pairs = [
        (one, other)
        for place, one in enumerate(order)
        for other in order[place + 1 :]
        if of_run[one] != of_run[other]
    ]
    return RunsCompared(
        runs=tuple(run.name for run in runs),
        scale=first.scale,
        prompts={run.name: len(run.prompts) for run in runs},
        confidence=first.confidence,
        notes=tuple(differences(runs)),
        candidates=min((len(e.weights) for s in thin.values() for e in s.values()), default=0),
        like=like,
        methods=tuple(_contestant(n, whole[n], volumes[n], first.confidence) for n in order),
        pairs=compare_pairs(volumes, pairs, first.confidence),
        balanced=tuple(balanced_soups([_thinned(run, thin) for run in found], first.confidence)),
    )


def _shared(runs: Sequence[FinishedRun]) -> Shared:
    axes = tuple(dict.fromkeys(axis for run in runs for axis in run.summary.axes))
    return Shared(runs[0].summary.values, axes, 0)


def _in_order(run: FinishedRun, runs: Sequence[FinishedRun]) -> FinishedRun:
    """With the first run's order of values, and a weight for every axis that some run has."""
    shared = _shared(runs)
    return replace(run, evaluated=tuple(
        replace(
            one,
            weights=None if one.weights is None
            else {axis: one.weights.get(axis, 0.0) for axis in shared.axes},
            rewards={value: one.rewards[value] for value in shared.values},
        )
        for one in run.evaluated
    ))  # fmt: skip


def _thinned(run: FinishedRun, thin: dict[str, dict[int, Candidates]]) -> FinishedRun:
    """Without the candidates that thinning left out."""
    kept = {
        (method.method, seed, tuple(weights))
        for method in run.summary.methods
        for seed, each in thin[f"{run.name}: {method.method}"].items()
        for weights in each.weights.tolist()
    }
    return replace(run, evaluated=tuple(
        one
        for one in run.evaluated
        if one.weights is None or (one.method, one.seed, tuple(one.weights.values())) in kept
    ))  # fmt: skip


def _volumes(
    runs: Sequence[FinishedRun],
    thin: dict[str, dict[int, Candidates]],
    scale: Scale,
    resamples: int,
) -> dict[str, Volumes]:
    """Runs with the same prompts are resampled alike, others for themselves."""
    sets = list(dict.fromkeys(run.prompts for run in runs))
    found = {}
    for run in runs:
        shares = prompt_shares(len(run.prompts), resamples, sets.index(run.prompts))
        for method in run.summary.methods:
            name = f"{run.name}: {method.method}"
            found[name] = volumes_of([e.rewards for e in thin[name].values()], shares, scale)
    return found


def _contestant(
    name: str, seeds: dict[int, Candidates], volumes: Volumes, confidence: float
) -> Contestant:
    low, high = volumes.interval(confidence)
    return Contestant(
        name=name,
        candidates=max(len(each.weights) for each in seeds.values()),
        seeds=len(seeds),
        hypervolume=volumes.shown,
        low=low,
        high=high,
    )
