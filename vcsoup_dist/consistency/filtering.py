"""One method's choice among the candidates of a value, and the account of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.candidates import BEFORE_ANY_FILTER, Candidates
from vcsoup_dist.consistency.gaps import count_patterns, named_patterns
from vcsoup_dist.consistency.pair_columns import PairColumns
from vcsoup_dist.consistency.policies import (
    all_positive,
    best_share,
    by_threshold,
    random_subset,
    share,
)
from vcsoup_dist.recipe import Consistency

Mask = NDArray[np.bool_]


def choose(
    method: str,
    settings: Consistency,
    columns: PairColumns,
    values: int,
    random_count: int | None = None,
) -> Mask:
    """The pairs [P] that a method of the recipe keeps; `random_count` is how many `random` does."""
    if method == "rewarded_soup":
        return columns.usable
    policy = settings.policy if method == "vc_soup" else method
    if policy == "all_positive":
        return all_positive(columns.patterns, columns.eligible, values)
    if policy == "threshold":
        return by_threshold(columns.cosines, columns.eligible, settings.threshold)
    if policy == "ratio":
        assert settings.ratio is not None
        return best_share(columns.cosines, columns.ids, columns.eligible, settings.ratio)
    assert policy == "random"
    if random_count is None:
        assert settings.ratio is not None
        random_count = share(int(columns.eligible.sum()), settings.ratio)
    return random_subset(columns.ids, columns.eligible, random_count)


def account(candidates: Candidates, kept: Mask, method: str, values: int) -> dict[str, Any]:
    """The counts of a choice, JSON-able: kept and dropped pairs sum to all."""
    columns, count = candidates.columns, int(kept.sum())
    unfiltered = method == "rewarded_soup"
    dropped = {
        reason: pairs
        for reason, pairs in candidates.reasons.items()
        if reason in BEFORE_ANY_FILTER or not unfiltered
    }
    among = columns.usable if unfiltered else columns.eligible
    dropped["by policy"] = int(among.sum()) - count
    return {
        "pairs": len(kept),
        "kept": count,
        "dropped": dropped,
        "unscored": candidates.unscored,
        "turned": int(candidates.turned.sum()),
        "turned_kept": int((candidates.turned & kept).sum()),
        "sign_patterns": named_patterns(candidates.pattern_counts, values),
        "sign_patterns_kept": named_patterns(count_patterns(columns.patterns[kept]), values),
    }
