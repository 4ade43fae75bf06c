"""One method's choice among the candidates of a value, and the account of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.candidates import Candidates
from vcsoup_dist.consistency.cosine import consistency, norm
from vcsoup_dist.consistency.gaps import sign_patterns
from vcsoup_dist.consistency.policies import (
    all_positive,
    best_share,
    by_threshold,
    eligible,
    random_subset,
    share,
)
from vcsoup_dist.recipe import Consistency

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Choice:
    """What a method keeps of P candidates."""

    cosines: Array
    """c(g) [P]; NaN where g = 0."""
    norms: Array
    """||g|| [P]."""
    kept: Mask
    """[P]."""
    dropped: dict[str, int]
    """Reason -> pairs; with the kept ones they sum to P."""


def choose(
    method: str, settings: Consistency, candidates: Candidates, random_count: int | None = None
) -> Choice:
    """Apply a method of the recipe; `random_count` is how many `random` keeps."""
    gaps = candidates.gaps
    cosines, norms = consistency(gaps), norm(gaps)
    usable = np.ones(len(gaps), dtype=bool)
    for mask in candidates.dropped.values():
        usable &= ~mask
    reasons = dict(candidates.dropped)
    if method == "rewarded_soup":
        kept = usable
    else:
        min_norm = settings.min_norm
        reasons["zero gap"] = np.isnan(cosines)
        reasons["below min_norm"] = norms < min_norm
        usable = usable & eligible(cosines, norms, min_norm)
        kept = _keep(method, settings, candidates, cosines, usable, random_count)
    counts, left = {}, ~kept
    for reason, mask in reasons.items():
        counts[reason] = int((left & mask).sum())
        left = left & ~mask
    counts["by policy"] = int(left.sum())
    return Choice(cosines, norms, kept, counts)


def _keep(
    method: str,
    settings: Consistency,
    candidates: Candidates,
    cosines: Array,
    usable: Mask,
    random_count: int | None,
) -> Mask:
    policy = settings.policy if method == "vc_soup" else method
    if policy == "all_positive":
        return all_positive(candidates.gaps, usable)
    if policy == "threshold":
        return by_threshold(cosines, usable, settings.threshold)
    if policy == "ratio":
        assert settings.ratio is not None
        return best_share(cosines, candidates.ids, usable, settings.ratio)
    assert policy == "random"
    if random_count is None:
        assert settings.ratio is not None
        random_count = share(int(usable.sum()), settings.ratio)
    return random_subset(candidates.ids, usable, random_count)


def account(candidates: Candidates, choice: Choice) -> dict[str, Any]:
    """The counts of a choice, JSON-able."""
    return {
        "pairs": len(candidates.ids),
        "kept": int(choice.kept.sum()),
        "dropped": choice.dropped,
        "turned": int(candidates.turned.sum()),
        "turned_kept": int((candidates.turned & choice.kept).sum()),
        "sign_patterns": sign_patterns(candidates.gaps),
        "sign_patterns_kept": sign_patterns(candidates.gaps[choice.kept]),
    }
