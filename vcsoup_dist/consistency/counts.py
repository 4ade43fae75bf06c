"""What became of measured pairs under a rule, in numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.gaps import count_patterns, named_patterns
from vcsoup_dist.consistency.measured_pairs import BEFORE_ANY_FILTER, MeasuredPairs
from vcsoup_dist.records.filter_report import PairCounts
from vcsoup_dist.records.keep_rule import KeepRule

BY_RULE = "by rule"
"""Why a rule drops a pair that it might have kept."""


def count_pairs(
    measured: MeasuredPairs, kept: NDArray[np.bool_], rule: KeepRule, values: int
) -> PairCounts:
    """The counts of a rule's choice [P] among pairs of N values."""
    columns, count = measured.columns, int(kept.sum())
    unfiltered = rule.kind == "all"
    dropped = {
        reason: pairs
        for reason, pairs in measured.reasons.items()
        if reason in BEFORE_ANY_FILTER or not unfiltered
    }
    among = columns.usable if unfiltered else columns.eligible
    dropped[BY_RULE] = int(among.sum()) - count
    return PairCounts(
        pairs=len(kept),
        kept=count,
        dropped=dropped,
        unscored=measured.unscored,
        swapped=int((measured.swapped & columns.usable).sum()),
        swapped_kept=int((measured.swapped & kept).sum()),
        sign_patterns=named_patterns(measured.pattern_counts, values),
        sign_patterns_kept=named_patterns(count_patterns(columns.patterns[kept]), values),
    )
