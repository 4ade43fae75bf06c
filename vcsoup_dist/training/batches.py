"""Which pairs make up a step, and how a step is cut into micro-batches for the ranks."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def step_pairs(pairs: int, pairs_per_step: int, seed: int, step: int) -> list[int]:
    """Indices of the pairs of optimizer step `step` (from 0), a function of the seed and the step.

    The steps walk through one permutation of all `pairs` per epoch, end to end.
    """
    first = step * pairs_per_step
    chosen: list[int] = []
    for epoch in range(first // pairs, (first + pairs_per_step - 1) // pairs + 1):
        order = _order(pairs, seed, epoch)
        start = max(first - epoch * pairs, 0)
        chosen += order[start : start + pairs_per_step - len(chosen)].tolist()
    return chosen


@functools.lru_cache(maxsize=2)  # a step may begin in one epoch and end in the next
def _order(pairs: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(pairs)


def micro_batches(costs: Sequence[int], ranks: int, tokens_per_batch: int) -> list[list[list[int]]]:
    """Cut a step into micro-batches: result[rank][m] lists positions in `costs` (tokens per pair).

    Every rank gets the same number, as few as the budget allows (a pair that alone exceeds it is a
    micro-batch of its own), since under ZeRO-3 a rank with fewer forwards would block the others.
    They are filled evenly, and those that run at the same time have similar sizes, since the
    slowest rank sets the pace. An empty list is a micro-batch without pairs, which its rank must
    still run.
    """
    halves = sum(cost > tokens_per_batch / 2 for cost in costs)  # of which no two fit together
    least = max(1, halves, -(-sum(costs) // tokens_per_batch))
    each = -(-least // ranks)
    while True:
        batches, loads = _deal(costs, ranks * each)
        fits = all(
            len(batch) < 2 or load <= tokens_per_batch
            for batch, load in zip(batches, loads, strict=True)
        )
        if fits:
            break
        each += 1
    order = sorted(range(len(batches)), key=lambda i: (-loads[i], i))
    return [[batches[order[m * ranks + rank]] for m in range(each)] for rank in range(ranks)]


def _deal(costs: Sequence[int], count: int) -> tuple[list[list[int]], list[int]]:
    """Deal out the pairs, the costliest first, each to the least loaded of `count` batches."""
    batches: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    queue = [(0, number) for number in range(count)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, number = heapq.heappop(queue)
        batches[number].append(index)
        loads[number] = load + costs[index]
        heapq.heappush(queue, (loads[number], number))
    return batches, loads
