"""Which pairs make up a step, and how a step is cut into micro-batches for the ranks."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np


def step_pairs(pairs: int, pairs_per_step: int, seed: int, step: int) -> list[int]:
    """Indices of the pairs of optimizer step `step` (from 0), from the seed and the step alone.

    The steps walk through one permutation of all `pairs` per epoch, end to end.
    """
    first = step * pairs_per_step
    chosen: list[int] = []
    for epoch in range(first // pairs, (first + pairs_per_step - 1) // pairs + 1):
        order = np.random.default_rng([seed, epoch]).permutation(pairs)
        start = max(first - epoch * pairs, 0)
        chosen += order[start : start + pairs_per_step - len(chosen)].tolist()
    return chosen


def micro_batches(costs: Sequence[int], ranks: int, tokens_per_batch: int) -> list[list[list[int]]]:
    """Cut a step into micro-batches: result[rank][m] lists positions in `costs` (tokens per pair).

    Costs are balanced over ranks (longest first to the least loaded), each micro-batch stays
    within the budget unless one pair alone exceeds it, and every rank gets the same number:
    under ZeRO-3 a rank with fewer forwards would leave the others waiting for ever. An empty
    list is a micro-batch of no pair, which its rank must still run.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(index)
        heapq.heappush(loads, (load + costs[index], rank))
    cut = [_first_fit(share, costs, tokens_per_batch) for share in shares]
    longest = max(1, *(len(batches) for batches in cut))
    return [batches + [[] for _ in range(longest - len(batches))] for batches in cut]


def _first_fit(share: Sequence[int], costs: Sequence[int], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    room: list[int] = []
    for index in share:
        for m, left in enumerate(room):
            if costs[index] <= left:
                batches[m].append(index)
                room[m] -= costs[index]
                break
        else:
            batches.append([index])
            room.append(budget - costs[index])
    return batches
