"""The scored pairs that a value may be trained on, before any filter: the second pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.blocks import (
    Block,
    check_ids,
    read_comparisons,
    read_ids,
    read_rewards,
)
from vcsoup_dist.consistency.gaps import (
    Patterns,
    consistency,
    count_patterns,
    gap_vectors,
    norm,
    sign_patterns,
    turned_by,
)
from vcsoup_dist.consistency.moments import CoMoments, co_moments
from vcsoup_dist.consistency.scales import Scale
from vcsoup_dist.consistency.shard_map import Run

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
"""Why no method may use a pair; of the others only one without a filter may."""


@dataclass(frozen=True)
class PairColumns:
    """The numbers that decide about P candidates of a value, in the order of their files.

    22 bytes a pair.
    """

    ids: Ids
    """[P] the pairs' ids, 16 hex digits each, as numbers."""
    cosines: Array
    """c(g) [P]; NaN where g = 0 or a reward is missing."""
    patterns: Patterns
    """[P] the signs of g in base 3, the first value's digit the highest: 0 is -, 1 is 0, 2 is +."""
    usable: Mask
    """[P] what no method leaves out: compared once, no tie of its own reward, none missing, its
    prompt held out nowhere."""
    eligible: Mask
    """[P] usable, g != 0, and the norm at least `consistency.min_norm`."""


@dataclass(frozen=True)
class Measure:
    """How the pairs of a dataset are judged for a value."""

    scale: Scale
    """Of the N rewards."""
    own: int | None
    """Index of the value where it borrows its pairs: each is turned round where that value's reward
    prefers the rejected answer, and dropped where it prefers neither, or where an earlier pair has
    the same two answers in whichever order: it would be the same pair twice. A dataset's own value
    keeps both orders, which contradict each other in the data too."""
    min_norm: float


@dataclass(frozen=True)
class Judged:
    """P pairs and what is known of them together."""

    cosines: Array
    patterns: Patterns
    usable: Mask
    eligible: Mask
    """[P] each, as in `PairColumns`."""
    turned: Mask
    """[P] whether chosen and rejected are exchanged."""
    reasons: dict[str, int]
    """Reason -> pairs that are not eligible, each under the first that it has."""
    pattern_counts: dict[int, int]
    """Of the usable pairs."""
    unscored: int
    """Pairs that lack a reward."""
    gaps: CoMoments
    """Of the usable pairs."""
    sample: Array
    """[k, N] gaps of those pairs that were asked for and are usable."""


@dataclass(frozen=True)
class Candidates:
    """All pairs of one or more datasets, end to end; fields as in `Judged`."""

    columns: PairColumns
    turned: Mask
    reasons: dict[str, int]
    pattern_counts: Counter[int]
    unscored: int
    gaps: CoMoments
    sample: Array
    """[k, N] gaps of evenly spaced pairs, as far as they are usable."""


def gather(
    blocks: Sequence[Block],
    measures: Sequence[Measure],
    run: Run,
    advance: Callable[[float], None],
    sample: int = 0,
    held_out: Ids | None = None,
) -> Candidates:
    """Judge the pairs of `blocks`, each with its measure, all of one value.

    `sample`: of how many pairs the gaps are kept. `advance` is told the pairs that were judged.
    `held_out`: the prompts, sorted, that no pair may have.
    """
    starts = np.cumsum([0, *(block.rows for block in blocks)])
    total = int(starts[-1])
    ids = _joined(run(read_ids, blocks), total)
    elsewhere = np.zeros(total, dtype=bool)
    repeated = elsewhere
    if measures[0].own is not None:
        repeated, elsewhere = _compared(run(read_comparisons, blocks), total, held_out)
    shown = np.unique(np.linspace(0, max(total - 1, 0), min(total, sample)).astype(np.int64))
    tasks = (
        _Task(
            block,
            measure,
            elsewhere[first : first + block.rows],
            repeated[first : first + block.rows],
            shown[(shown >= first) & (shown < first + block.rows)] - first,
        )
        for block, measure, first in zip(blocks, measures, starts.tolist(), strict=False)
    )
    columns = PairColumns(
        ids,
        np.empty(total),
        np.empty(total, np.uint32),
        np.empty(total, dtype=bool),
        np.empty(total, dtype=bool),
    )
    turned = np.empty(total, dtype=bool)
    reasons: Counter[str] = Counter()
    patterns: Counter[int] = Counter()
    unscored = 0
    n = len(measures[0].scale.s)
    gaps = co_moments(np.zeros((0, n)))
    samples = [np.zeros((0, n))]
    for block, first, part in zip(blocks, starts.tolist(), run(_judge_block, tasks), strict=False):
        rows = slice(first, first + block.rows)
        columns.cosines[rows] = part.cosines
        columns.patterns[rows] = part.patterns
        columns.usable[rows] = part.usable
        columns.eligible[rows] = part.eligible
        turned[rows] = part.turned
        reasons.update(part.reasons)
        patterns.update(part.pattern_counts)
        unscored += part.unscored
        gaps = gaps.merged(part.gaps)
        samples.append(part.sample)
        advance(block.rows)
    return Candidates(
        columns, turned, dict(reasons), patterns, unscored, gaps, np.concatenate(samples)
    )


def judge(
    chosen: Array,
    rejected: Array,
    measure: Measure,
    elsewhere: Mask,
    repeated: Mask,
    shown: NDArray[np.int64],
) -> Judged:
    """Judge P pairs from their rewards [P, N].

    elsewhere, repeated [P]: whose prompt is held out, whose answers an earlier pair has; shown: the
    pairs whose gaps make the sample.
    """
    gaps, turned = measured(chosen, rejected, measure)
    cosines, norms = consistency(gaps), norm(gaps)
    missing = np.asarray(np.isnan(gaps).any(axis=1))
    tie: Mask = np.zeros_like(missing)
    if measure.own is not None:
        tie = gaps[:, measure.own] == 0
    before = dict(zip(BEFORE_ANY_FILTER, (elsewhere, repeated, missing, tie), strict=True))
    usable, unusable = _without(np.ones_like(missing), before)
    vague: dict[str, Mask] = {ZERO_GAP: np.isnan(cosines), SHORT: norms < measure.min_norm}
    eligible, without_direction = _without(usable, vague)
    patterns = sign_patterns(gaps)
    return Judged(
        cosines=cosines,
        patterns=patterns,
        usable=usable,
        eligible=eligible,
        turned=turned,
        reasons=unusable | without_direction,
        pattern_counts=count_patterns(patterns[usable]),
        unscored=int(missing.sum()),
        gaps=co_moments(gaps[usable]),
        sample=gaps[shown[usable[shown]]],
    )


def measured(chosen: Array, rejected: Array, measure: Measure) -> tuple[Array, Mask]:
    """g [P, N] of rewards [P, N], and which pairs [P] are turned round."""
    scale = measure.scale
    return turned_by(gap_vectors(chosen, rejected, scale.s, scale.spread), measure.own)


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
    measure: Measure
    elsewhere: Mask
    repeated: Mask
    shown: NDArray[np.int64]


def _judge_block(task: _Task) -> Judged:
    check_ids(task.block)
    chosen, rejected = read_rewards(task.block)
    return judge(chosen, rejected, task.measure, task.elsewhere, task.repeated, task.shown)


def _compared(
    parts: Iterable[tuple[Ids, Ids]], total: int, held_out: Ids | None
) -> tuple[Mask, Mask]:
    """[P] whether an earlier pair has the same answers, and whether the prompt is held out."""
    answers, elsewhere = np.empty(total, np.uint64), np.zeros(total, dtype=bool)
    filled = 0
    for part, prompts in parts:
        rows = slice(filled, filled + len(part))
        answers[rows] = part
        if held_out is not None and len(held_out):
            found = np.searchsorted(held_out, prompts).clip(max=len(held_out) - 1)
            elsewhere[rows] = held_out[found] == prompts
        filled += len(part)
    assert filled == total
    return _repeated(answers), elsewhere


def _joined(parts: Iterable[Ids], total: int) -> Ids:
    ids = np.empty(total, np.uint64)
    filled = 0
    for part in parts:
        ids[filled : filled + len(part)] = part
        filled += len(part)
    assert filled == total
    return ids


def _repeated(ids: Ids) -> Mask:
    """[P] whether the same id is there before."""
    ordered = np.sort(ids)
    if (ordered[1:] != ordered[:-1]).all():  # often so, and without an index to sort along
        return np.zeros(len(ids), dtype=bool)
    del ordered
    _, first = np.unique(ids, return_index=True)
    repeated = np.ones(len(ids), dtype=bool)
    repeated[first] = False
    return repeated
