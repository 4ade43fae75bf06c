"""The scored pairs that a value may be trained on, before any filter: the second pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.blocks import Block, check_ids, read_ids, read_rewards
from vcsoup_dist.consistency.cosine import consistency, norm
from vcsoup_dist.consistency.gaps import (
    Patterns,
    count_patterns,
    gap_vectors,
    sign_patterns,
    turned_by,
)
from vcsoup_dist.consistency.moments import CoMoments, co_moments
from vcsoup_dist.consistency.pair_columns import PairColumns
from vcsoup_dist.consistency.shard_map import Run

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Ids = NDArray[np.uint64]

BEFORE_ANY_FILTER = ("in another dataset too", "no reward", "tie of its own reward")
"""Why no method may use a pair."""
NO_DIRECTION = ("zero gap", "below min_norm")
"""Why only a method without a filter may."""


@dataclass(frozen=True)
class Measure:
    """How the pairs of a dataset are judged for a value."""

    scale: Array
    """s [N]."""
    own: int | None
    """Index of the value where it borrows its pairs: each is turned round where that value's reward
    prefers the rejected answer, and dropped where it prefers neither."""
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
    """Of the pairs that have all rewards."""
    unscored: int
    """Pairs that have not."""
    gaps: CoMoments
    """Of the usable pairs."""
    sample: Array
    """[k, N] gaps of the pairs that were asked for."""


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
    """[k, N] gaps of evenly spaced pairs, without those that miss a reward."""


def gather(
    blocks: Sequence[Block],
    measures: Sequence[Measure],
    run: Run,
    advance: Callable[[float], None],
    sample: int = 0,
) -> Candidates:
    """Judge the pairs of `blocks`, each with its measure; each pair once, where it comes first.

    `sample`: of how many pairs the gaps are kept. `advance` is told the pairs that were judged.
    """
    starts = np.cumsum([0, *(block.rows for block in blocks)])
    total = int(starts[-1])
    ids = _all_ids(run(read_ids, blocks), total)
    repeated = _repeated(ids)
    shown = np.unique(np.linspace(0, max(total - 1, 0), min(total, sample)).astype(np.int64))
    tasks = (
        _Task(
            block,
            measure,
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
    n = len(measures[0].scale)
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
        samples.append(part.sample[~np.isnan(part.sample).any(axis=1)])
        advance(block.rows)
    return Candidates(
        columns, turned, dict(reasons), patterns, unscored, gaps, np.concatenate(samples)
    )


def judge(
    chosen: Array, rejected: Array, measure: Measure, repeated: Mask, shown: NDArray[np.int64]
) -> Judged:
    """Judge P pairs from their rewards [P, N]; `repeated` [P] are in an earlier place too.

    shown: the pairs whose gaps are kept as a sample.
    """
    gaps, turned = turned_by(gap_vectors(chosen, rejected, measure.scale), measure.own)
    cosines, norms = consistency(gaps), norm(gaps)
    missing = np.isnan(gaps).any(axis=1)
    tie = np.zeros_like(missing) if measure.own is None else gaps[:, measure.own] == 0
    left = np.ones_like(missing)
    reasons = {}
    masks = (repeated, missing, tie, np.isnan(cosines), norms < measure.min_norm)
    usable = left
    for reason, mask in zip((*BEFORE_ANY_FILTER, *NO_DIRECTION), masks, strict=True):
        reasons[reason] = int((left & mask).sum())
        left = left & ~mask
        if reason == BEFORE_ANY_FILTER[-1]:
            usable = left
    patterns = sign_patterns(gaps)
    return Judged(
        cosines=cosines,
        patterns=patterns,
        usable=usable,
        eligible=left,
        turned=turned,
        reasons=reasons,
        pattern_counts=count_patterns(patterns[~missing]),
        unscored=int(missing.sum()),
        gaps=co_moments(gaps[usable]),
        sample=gaps[shown],
    )


@dataclass(frozen=True)
class _Task:
    block: Block
    measure: Measure
    repeated: Mask
    shown: NDArray[np.int64]


def _judge_block(task: _Task) -> Judged:
    check_ids(task.block)
    chosen, rejected = read_rewards(task.block)
    return judge(chosen, rejected, task.measure, task.repeated, task.shown)


def _all_ids(parts: Iterable[Ids], total: int) -> Ids:
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
    if (ordered[1:] != ordered[:-1]).all():  # the usual case, without an index to sort along
        return np.zeros(len(ids), dtype=bool)
    del ordered
    _, first = np.unique(ids, return_index=True)
    repeated = np.ones(len(ids), dtype=bool)
    repeated[first] = False
    return repeated
