"""What people say of the pairs of several datasets, of which some compare the same answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint64]
Signs = NDArray[np.int8]
Mask = NDArray[np.bool_]


def human_preferences(
    ids: Ids, answers: Ids, own: NDArray[np.int64], values: int
) -> tuple[Signs, Mask, Mask]:
    """Which answer people prefer under each value; which they compared; which pairs are the first.

    ids, answers [P]: of the pair as it is ordered, and of its two answers in either order. own [P]:
    the value whose dataset has the pair, -1 for none.

    Returns signs [P, N], 1 for a pair's own chosen answer; 0 also where people contradict each
    other; then whether anybody compared the answers for the value [P, N]; then whether no pair
    before has the same two answers [P].
    """
    pairs = np.arange(len(ids))
    signs = np.zeros((len(ids), values), np.int8)
    with_own = own >= 0
    signs[pairs[with_own], own[with_own]] = 1
    compared = signs != 0
    _, first, group, count = np.unique(
        answers, return_index=True, return_inverse=True, return_counts=True
    )
    again = np.flatnonzero(count[group] > 1)
    if len(again):
        # Against the order of the first pair with these answers.
        order = np.where(ids[again] == ids[first[group[again]]], 1, -1)
        votes = np.zeros((len(count), values), np.int32)
        asked = np.zeros((len(count), values), bool)
        voting = with_own[again]
        place = (group[again][voting], own[again][voting])
        np.add.at(votes, place, order[voting])
        asked[place] = True
        signs[again] = np.sign(votes[group[again]]) * order[:, None]
        compared[again] = asked[group[again]]
    return signs, compared, first[group] == pairs
