"""Which values conflict, and what each rule would keep of the same pairs.

To choose a rule before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.measured_pairs import PairColumns
from vcsoup_dist.consistency.rules import SAME, all_positive, keep
from vcsoup_dist.records.filter_report import RuleComparison, RuleCount
from vcsoup_dist.records.keep_rule import KeepRule

Array = NDArray[np.float64]
Bits = NDArray[np.uint8]

THRESHOLDS = (0.0, 0.5)
RATIOS = (0.5, 0.25)


def conflict_matrix(sign_patterns: Mapping[str, int]) -> Array:
    """Share of pairs [N, N] in which values i and j prefer different answers; symmetric.

    `sign_patterns`: pairs by pattern of N signs, such as `++-`; a gap of `0` prefers neither
    answer and contradicts nobody. Of no pairs: [0, 0].
    """
    if not sign_patterns:
        return np.zeros((0, 0))
    counts = np.array(list(sign_patterns.values()), dtype=np.float64)
    signs = np.array([list(pattern) for pattern in sign_patterns])
    positive, negative = (signs == "+").astype(np.float64), (signs == "-").astype(np.float64)
    one_way = (positive * counts[:, None]).T @ negative  # whole numbers: exact in any order
    matrix: Array = (one_way + one_way.T) / counts.sum()
    return matrix


def safe_threshold(values: int) -> float:
    """sqrt((N-1)/N): from this cosine on no gap of N values is negative."""
    return math.sqrt((values - 1) / values)


def lossless_threshold(values: int) -> float:
    """1/sqrt(N): the cosine of every gap vector without a part <= 0 lies above it."""
    return math.sqrt(1 / values)


def compare(
    columns: PairColumns, rule: KeepRule, values: int, copied: KeepRule | None = None
) -> RuleComparison:
    """What rules keep of P pairs with N values.

    `rule`: the set's own; `copied`: of the set whose size `as_many_as` copies.
    """
    positive = np.packbits(all_positive(columns.patterns, columns.usable, values))
    usable, eligible = int(columns.usable.sum()), int(columns.eligible.sum())
    own = copied or (None if rule.kind == "all" else rule)
    own_count = 0
    masks: list[Bits] = []
    rows: list[RuleCount] = []
    for name, other in _rules(own, rule.min_norm, values):
        mask = keep(other, columns, values, own_count)
        bits, count = np.packbits(mask), int(mask.sum())
        if other == own:
            own_count = count
        masks.append(bits)
        rows.append(
            RuleCount(
                name=name,
                rule=other,
                is_own=other == own,
                count=count,
                share=_ratio(count, usable),
                all_positive=_ratio(_common(bits, positive), count),
            )
        )
    overlap = [
        [_ratio(_common(one, other), row.count) for other in masks]
        for one, row in zip(masks, rows, strict=True)
    ]
    return RuleComparison(usable, eligible, rows, overlap)


def _rules(own: KeepRule | None, min_norm: float, values: int) -> Iterator[tuple[str, KeepRule]]:
    """Rules by name, `own` among them; random last: it copies the size of `own`."""
    kind = own.kind if own else None
    thresholds = [*THRESHOLDS, lossless_threshold(values), safe_threshold(values)]
    if own and own.threshold is not None:
        thresholds.insert(0, own.threshold)
    ratios = set(RATIOS)
    if own and kind == "ratio" and own.ratio is not None:
        ratios.add(own.ratio)
    yield "no filter", KeepRule("all", min_norm=min_norm)
    for threshold in sorted(_distinct(thresholds)):
        yield f"c >= {threshold:.4g}", KeepRule("threshold", threshold, min_norm=min_norm)
    for ratio in sorted(ratios, reverse=True):
        yield f"best {100 * ratio:.4g} %", KeepRule("ratio", ratio=ratio, min_norm=min_norm)
    yield "all gaps > 0", KeepRule("all_positive", min_norm=min_norm)
    if own and kind == "random":
        yield f"random {100 * (own.ratio or 0):.4g} %", own
    elif own:
        yield "random", KeepRule("as_many_as", min_norm=min_norm)


def _distinct(thresholds: list[float]) -> list[float]:
    """Each once: of those that only rounding tells apart, the first."""
    kept: list[float] = []
    for threshold in thresholds:
        if all(abs(threshold - other) > SAME for other in kept):
            kept.append(threshold)
    return kept


def _common(one: Bits, other: Bits) -> int:
    """Pairs in both of two masks, eight to a byte."""
    return int(np.bitwise_count(one & other).sum(dtype=np.int64))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
