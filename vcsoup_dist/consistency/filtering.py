"""A policy's choice among the candidates of a value, and the account of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.candidates import BEFORE_ANY_FILTER, Candidates, PairColumns
from vcsoup_dist.consistency.gaps import count_patterns, named_patterns
from vcsoup_dist.consistency.policies import (
    all_positive,
    best_share,
    by_threshold,
    random_subset,
    share,
)
from vcsoup_dist.recipe import Consistency

Mask = NDArray[np.bool_]

BY_POLICY = "by policy"
"""Why a method drops a pair that it might have kept."""


@dataclass(frozen=True)
class Policy:
    """What to keep; fields that a policy does not need are None."""

    kind: Literal["none", "threshold", "ratio", "all_positive", "random"]
    threshold: float | None = None
    ratio: float | None = None
    """Of `ratio`, and of `random` that copies no other's size."""
    count: int | None = None
    """Pairs that `random` keeps."""


def keep(policy: Policy, columns: PairColumns, values: int) -> Mask:
    """The pairs [P] of N values that a policy keeps."""
    eligible = columns.eligible
    if policy.kind == "none":
        return columns.usable
    if policy.kind == "all_positive":
        return all_positive(columns.patterns, eligible, values)
    if policy.kind == "threshold":
        assert policy.threshold is not None
        return by_threshold(columns.cosines, eligible, policy.threshold)
    if policy.kind == "random" and policy.count is not None:
        return random_subset(columns.ids, eligible, policy.count)
    assert policy.ratio is not None
    if policy.kind == "ratio":
        return best_share(columns.cosines, columns.ids, eligible, policy.ratio)
    return random_subset(columns.ids, eligible, share(int(eligible.sum()), policy.ratio))


def choose(
    method: str,
    settings: Consistency,
    columns: PairColumns,
    values: int,
    random_count: int | None = None,
) -> Mask:
    """The pairs [P] that a method of the recipe keeps; `random_count` is how many `random` does."""
    if method == "rewarded_soup":
        policy = Policy("none")
    elif method == "all_positive":
        policy = Policy("all_positive")
    elif method == "random":
        policy = Policy("random", count=random_count)
    else:
        policy = Policy(settings.rule, settings.threshold, settings.ratio)
    return keep(policy, columns, values)


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
    dropped[BY_POLICY] = int(among.sum()) - count
    return {
        "pairs": len(kept),
        "kept": count,
        "dropped": dropped,
        "unscored": candidates.unscored,
        "turned": int((candidates.turned & columns.usable).sum()),
        "turned_kept": int((candidates.turned & kept).sum()),
        "sign_patterns": named_patterns(candidates.pattern_counts, values),
        "sign_patterns_kept": named_patterns(count_patterns(columns.patterns[kept]), values),
    }
