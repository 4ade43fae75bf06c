"""Linear mode connectivity in rewards: the line between two policies against the straight line.

Rewarded Soups' test: two policies are linearly connected where a soup between them earns at least
what the straight line between the end points' rewards promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vcsoup_dist.records.summary import Edge

Array = NDArray[np.float64]

NO_WEIGHT = 1e-9  # a soup has no part of a policy with a smaller weight
ROUNDING = 1e-12  # relative to the rewards; a smaller drop is rounding

Soup = tuple[Mapping[str, float], Mapping[str, float]]  # (lambda by axis, reward by value)


def straight_line(positions: ArrayLike, rewards: ArrayLike) -> Array:
    """[T]: what linear interpolation between the first and the last reward gives at `positions`.

    `positions` [T] rise from 0 (one policy) to 1 (the other); `rewards` [T] are one value's means.
    """
    at, earned = np.asarray(positions, float), np.asarray(rewards, float)
    if at.ndim != 1 or at.shape != earned.shape or len(at) < 2:
        raise ValueError(f"positions and rewards must match, got {at.shape} and {earned.shape}")
    if at[0] != 0 or at[-1] != 1 or (np.diff(at) <= 0).any():
        raise ValueError(f"positions must rise from 0 to 1, got {at.tolist()}")
    line: Array = (1 - at) * earned[0] + at * earned[-1]
    return line


def barrier(positions: ArrayLike, rewards: ArrayLike) -> tuple[float, float | None]:
    """(drop, position): the largest drop below the straight line, and where it is.

    In the reward's units; (0, None) where no soup lies below the line by more than rounding.
    """
    earned = np.asarray(rewards, float)
    drop = straight_line(positions, earned) - earned
    worst = int(drop.argmax())
    if drop[worst] <= ROUNDING * np.abs(earned).max():
        return 0.0, None
    return float(drop[worst]), float(np.asarray(positions, float)[worst])


def find_edges(method: str, soups: Sequence[Soup], axes: Sequence[str]) -> list[Edge]:
    """One edge per pair of policies of which `soups` has both, and a soup of these two alone."""
    edges = []
    for start, end in combinations(axes, 2):
        along = sorted(_along(soups, start, end), key=lambda each: each[0])
        positions = tuple(position for position, _ in along)
        if len(along) < 3 or positions[0] != 0 or positions[-1] != 1:
            continue
        values = along[0][1]
        rewards = {value: tuple(earned[value] for _, earned in along) for value in values}
        drops = {value: barrier(positions, rewards[value]) for value in values}
        lines = {value: straight_line(positions, rewards[value]).tolist() for value in values}
        edges.append(
            Edge(
                method=method,
                start=start,
                end=end,
                positions=positions,
                rewards=rewards,
                line={value: tuple(line) for value, line in lines.items()},
                barrier={value: drop for value, (drop, _) in drops.items()},
                barrier_at={value: at for value, (_, at) in drops.items()},
            )
        )
    return edges


def _along(soups: Sequence[Soup], start: str, end: str) -> list[tuple[float, Mapping[str, float]]]:
    """(position, rewards) of the soups of these two policies alone."""
    along = []
    for weights, rewards in soups:
        part = {axis for axis, weight in weights.items() if abs(weight) > NO_WEIGHT}
        if part == {start, end}:
            along.append((weights[end] / (weights[start] + weights[end]), rewards))
        elif len(part) == 1 and part <= {start, end}:
            along.append((float(end in part), rewards))
    return along
