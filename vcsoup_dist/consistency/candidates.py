"""The scored pairs that a value may be trained on, before any filter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.gaps import Normalisation, gap_vectors, reward_scale
from vcsoup_dist.errors import UserError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class DatasetScores:
    """The rewards of one dataset's P training pairs under all N values."""

    ids: list[str]
    chosen: Array
    """[P, N]."""
    rejected: Array
    """[P, N]."""


@dataclass(frozen=True)
class Candidates:
    """P pairs of one or more datasets, end to end."""

    ids: list[str]
    datasets: list[str]
    """[P] dataset of each."""
    turned: Mask
    """[P] whether chosen and rejected are exchanged."""
    gaps: Array
    """g [P, N], of the pairs as they are after turning."""
    dropped: dict[str, Mask]
    """Reason -> the pairs [P] that no method may use."""


def scales(
    scores: Mapping[str, DatasetScores],
    values: Sequence[str],
    normalisation: Normalisation,
    scope: str,
) -> dict[str, Array]:
    """s_j [N] to use for each dataset; raises UserError where a reward has no spread."""
    if scope == "all":
        chosen = np.concatenate([each.chosen for each in scores.values()])
        rejected = np.concatenate([each.rejected for each in scores.values()])
        shared = reward_scale(chosen, rejected, normalisation)
        found = dict.fromkeys(scores, shared)
    else:
        found = {
            dataset: reward_scale(each.chosen, each.rejected, normalisation)
            for dataset, each in scores.items()
        }
    for dataset, scale in found.items():
        for value, s in zip(values, scale, strict=True):
            if not s > 0:
                raise UserError(
                    f"values.{value}.reward: its spread ({normalisation}) is {s:g} over "
                    f"{'all datasets' if scope == 'all' else f'the pairs of `{dataset}`'}, so gaps "
                    "cannot be measured by it; take another reward or consistency.normalisation"
                )
    return found


def gather(
    scores: Mapping[str, DatasetScores], scale: Mapping[str, Array], own: int | None
) -> Candidates:
    """The pairs of all datasets in `scores`, each pair once.

    With `own`, the index of a value without pairs of its own, a pair is turned round where that
    value's raw reward prefers the rejected answer, and dropped where it prefers neither.
    """
    gaps, raw, ids, datasets = [], [], [], []
    for dataset, each in scores.items():
        gaps.append(gap_vectors(each.chosen, each.rejected, scale[dataset]))
        raw.append(each.chosen - each.rejected)
        ids += each.ids
        datasets += [dataset] * len(each.ids)
    joined = np.concatenate(gaps)
    seen: set[str] = set()
    repeated = np.zeros(len(ids), dtype=bool)
    for i, identity in enumerate(ids):
        repeated[i] = identity in seen
        seen.add(identity)
    dropped = {"in another dataset too": repeated}
    turned = np.zeros(len(ids), dtype=bool)
    if own is not None:
        by_own = np.concatenate(raw)[:, own]
        turned = by_own < 0
        dropped["tie of its own reward"] = by_own == 0
        joined = np.where(turned[:, None], -joined, joined)
    return Candidates(ids, datasets, turned, joined, dropped)
