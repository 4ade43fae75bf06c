"""The second pass over the scores: the gaps of each pair, and whether a rule may keep it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.blocks import (
    Block,
    checked_ids,
    read_comparisons,
    read_rewards,
)
from vcsoup_dist.consistency.gaps import (
    Patterns,
    consistency,
    count_patterns,
    gap_vectors,
    norm,
    sign_patterns,
    swap_by_own,
)
from vcsoup_dist.consistency.repeated import repeated_and_held_out
from vcsoup_dist.consistency.scales import Scale
from vcsoup_dist.launch.task_map import Run
from vcsoup_dist.moments import CoMoments, co_moments

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Ids = NDArray[np.uint64]

HELD_OUT_ELSEWHERE = "prompt held out in another dataset"
COMPARED_BEFORE = "answers compared before"
NO_REWARD = "no reward"
OWN_TIE = "tie of its own reward"
ZERO_GAP = "zero gap"
SHORT = "below min_norm"
BEFORE_ANY_FILTER = (HELD_OUT_ELSEWHERE, COMPARED_BEFORE, NO_REWARD, OWN_TIE)
"""Why no rule keeps a pair; for other reasons every rule but `all` drops it."""


@dataclass(frozen=True)
class PairColumns:
    """The numbers that decide about P pairs of a value, in the order of their files.

    22 bytes a pair.
    """

    ids: Ids
    """[P] the pairs' ids, 16 hex digits each, as numbers."""
    cosines: Array
    """c(g) [P]; NaN where g = 0 or a reward is missing."""
    patterns: Patterns
    """[P] the signs of g in base 3, the first value's digit the highest: 0 is -, 1 is 0, 2 is +."""
    usable: Mask
    """[P] what no rule leaves out: compared once, no tie of its own reward, none missing, its
    prompt held out nowhere."""
    eligible: Mask
    """[P] usable, g != 0, and the norm at least `min_norm`: what rules choose from."""


@dataclass(frozen=True)
class GapSettings:
    """How the gaps of a dataset's pairs are measured for a value."""

    scale: Scale
    """Of the N rewards."""
    own: int | None
    """Index of the value where it borrows its pairs: a pair is swapped where that value's reward
    prefers the rejected answer, and dropped where it prefers neither, or where an earlier pair has
    the same two answers in whichever order: it would be the same pair twice. A dataset's own value
    keeps both orders, which contradict each other in the data too."""
    min_norm: float


@dataclass(frozen=True)
class MeasuredPairs:
    """P pairs and what is measured of them together."""

    columns: PairColumns
    swapped: Mask
    """[P] whether chosen and rejected are exchanged."""
    reasons: Mapping[str, int]
    """Reason -> pairs that are not eligible, each under the first that it has."""
    pattern_counts: Mapping[int, int]
    """Of the usable pairs."""
    unscored: int
    """Pairs that lack a reward."""
    gaps: CoMoments
    """Of the usable pairs."""
    sample: Array
    """[k, N] gaps of evenly spaced pairs, as far as they are usable."""


def measure_pairs(
    blocks: Sequence[Block],
    settings: Sequence[GapSettings],
    run: Run,
    advance: Callable[[float], None],
    sample: int = 0,
    held_out: Ids | None = None,
) -> MeasuredPairs:
    """Measure the pairs of `blocks`, each with its settings, all of one value.

    `sample`: of how many pairs the gaps are kept. `advance` is called with the number of pairs that
    were measured. `held_out`: the prompts, sorted, that no pair may have.
    """
    total = sum(block.rows for block in blocks)
    columns = PairColumns(
        ids=np.empty(total, np.uint64),
        cosines=np.empty(total),
        patterns=np.empty(total, np.uint32),
        usable=np.empty(total, dtype=bool),
        eligible=np.empty(total, dtype=bool),
    )
    swapped = np.empty(total, dtype=bool)
    reasons: Counter[str] = Counter()
    patterns: Counter[int] = Counter()
    unscored = first = 0
    no_gaps = np.zeros((0, len(settings[0].scale.s)))
    gaps, samples = co_moments(no_gaps), [no_gaps]
    tasks = _tasks(blocks, settings, run, sample, held_out)
    for part in run(_measure_task, tasks):
        rows = slice(first, first + len(part.swapped))
        for name, column in vars(columns).items():
            column[rows] = getattr(part.columns, name)
        swapped[rows] = part.swapped
        reasons.update(part.reasons)
        patterns.update(part.pattern_counts)
        unscored += part.unscored
        gaps = gaps.merged(part.gaps)
        samples.append(part.sample)
        first = rows.stop
        advance(len(part.swapped))
    return MeasuredPairs(
        columns, swapped, reasons, patterns, unscored, gaps, np.concatenate(samples)
    )


def measure_block(
    ids: Ids,
    chosen: Array,
    rejected: Array,
    settings: GapSettings,
    held_out: Mask,
    repeated: Mask,
    sampled: NDArray[np.int64],
) -> MeasuredPairs:
    """Measure P pairs from their ids [P] and rewards [P, N].

    held_out, repeated [P]: whose prompt is held out, whose answers an earlier pair has; sampled:
    indices of the pairs whose gaps make the sample.
    """
    gaps, swapped = gaps_of(chosen, rejected, settings)
    cosines, norms = consistency(gaps), norm(gaps)
    missing = np.asarray(np.isnan(gaps).any(axis=1))
    tie: Mask = np.zeros_like(missing)
    if settings.own is not None:
        tie = gaps[:, settings.own] == 0
    before = dict(zip(BEFORE_ANY_FILTER, (held_out, repeated, missing, tie), strict=True))
    usable, unusable = _without(np.ones_like(missing), before)
    vague: dict[str, Mask] = {ZERO_GAP: np.isnan(cosines), SHORT: norms < settings.min_norm}
    eligible, without_direction = _without(usable, vague)
    patterns = sign_patterns(gaps)
    return MeasuredPairs(
        columns=PairColumns(ids, cosines, patterns, usable, eligible),
        swapped=swapped,
        reasons=unusable | without_direction,
        pattern_counts=count_patterns(patterns[usable]),
        unscored=int(missing.sum()),
        gaps=co_moments(gaps[usable]),
        sample=gaps[sampled[usable[sampled]]],
    )


def gaps_of(chosen: Array, rejected: Array, settings: GapSettings) -> tuple[Array, Mask]:
    """g [P, N] of rewards [P, N], and which pairs [P] are swapped."""
    scale = settings.scale
    return swap_by_own(gap_vectors(chosen, rejected, scale.s, scale.spread), settings.own)


def _without(pairs: Mask, reasons: Mapping[str, Mask]) -> tuple[Mask, dict[str, int]]:
    """`pairs` [P] less those of every mask; how many are gone, each under its first reason."""
    gone = {}
    for reason, mask in reasons.items():
        gone[reason] = int((pairs & mask).sum())
        pairs = pairs & ~mask
    return pairs, gone


@dataclass(frozen=True)
class _Task:
    block: Block
    settings: GapSettings
    held_out: Mask
    repeated: Mask
    sampled: NDArray[np.int64]


def _tasks(
    blocks: Sequence[Block],
    settings: Sequence[GapSettings],
    run: Run,
    sample: int,
    held_out: Ids | None,
) -> Iterator[_Task]:
    total = sum(block.rows for block in blocks)
    is_held_out = repeated = np.zeros(total, dtype=bool)
    if settings[0].own is not None:
        comparisons = run(read_comparisons, blocks)
        repeated, is_held_out = repeated_and_held_out(comparisons, total, held_out)
    sampled = np.unique(np.linspace(0, max(total - 1, 0), min(total, sample)).astype(np.int64))
    first = 0
    for block, own in zip(blocks, settings, strict=True):
        rows = slice(first, first + block.rows)
        inside = sampled[(sampled >= first) & (sampled < rows.stop)] - first
        yield _Task(block, own, is_held_out[rows], repeated[rows], inside)
        first = rows.stop


def _measure_task(task: _Task) -> MeasuredPairs:
    chosen, rejected = read_rewards(task.block)
    return measure_block(
        checked_ids(task.block),
        chosen,
        rejected,
        task.settings,
        task.held_out,
        task.repeated,
        task.sampled,
    )
