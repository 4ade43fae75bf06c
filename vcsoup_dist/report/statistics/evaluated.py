"""The rewards of one evaluated model, and the check that evaluations can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.errors import UserError
from vcsoup_dist.records.summary import policy_of

Weights = tuple[float, ...]


@dataclass(frozen=True)
class Evaluated:
    """One evaluated model: a soup of a method and seed, or theta_0 (method, seed, weights None).

    `weights` is lambda by trained value; `rewards` holds, for each value, one number per prompt
    [P] (already signed: larger is better), in the same order of prompts for all evaluations.
    """

    name: str
    method: str | None
    seed: int | None
    weights: Mapping[str, float] | None
    rewards: Mapping[str, NDArray[np.floating]]
    unfinished: float | None = None
    """Share of the answers that did not end within the limit."""
    is_soup: bool = True
    """Whether it is the sum of its method's policies with `weights`, or trained for them."""
    losses: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    """Value -> DPO loss of each held-out pair of its own data, where it was measured."""

    @property
    def policy(self) -> str | None:
        """The value that has all of the weight; None for theta_0 and a mixture."""
        return policy_of(self.weights)

    def mean(self, value: str) -> float:
        """Mean reward over the prompts, summed in double precision."""
        return float(np.mean(self.rewards[value], dtype=np.float64))


@dataclass(frozen=True)
class Shared:
    """What all evaluations of a run agree on."""

    values: tuple[str, ...]
    axes: tuple[str, ...]
    """Values with a policy: the order of the weights."""
    prompts: int


def check_shared(evaluated: Sequence[Evaluated]) -> Shared:
    """What the evaluations share.

    Raises UserError for a reward that is not finite; ValueError for evaluations that do not share
    values, axes or prompts, that are half theta_0, or that come twice.
    """
    if not evaluated or not evaluated[0].rewards:
        raise ValueError("nothing was evaluated")
    values = tuple(evaluated[0].rewards)
    axes = next((tuple(one.weights) for one in evaluated if one.weights is not None), ())
    prompts = len(evaluated[0].rewards[values[0]])
    seen = set()
    for one in evaluated:
        if set(one.rewards) != set(values):
            raise ValueError(f"{one.name} has the values {list(one.rewards)}, not {list(values)}")
        if len({one.method is None, one.seed is None, one.weights is None}) != 1:
            raise ValueError(f"{one.name}: method, seed and weights come together or not at all")
        if one.weights is not None and set(one.weights) != set(axes):
            raise ValueError(f"{one.name} has weights for {list(one.weights)}, not {list(axes)}")
        key = (one.method, one.seed, _rounded(one, axes))
        if key in seen:
            raise ValueError(f"{one.name}: its method, seed and weights were evaluated before")
        seen.add(key)
        for value in values:
            _check_rewards(one, value, prompts)
    return Shared(values, axes, prompts)


def same_soup(evaluated: Sequence[Evaluated], axes: Sequence[str]) -> list[list[Evaluated]]:
    """Evaluations of one method and one lambda together, by seed: theta_0 first, then the methods
    in the order in which they come, each by weights (the first axis's weight rising)."""
    groups: dict[tuple[str | None, Weights], list[Evaluated]] = {}
    for one in evaluated:
        groups.setdefault((one.method, _rounded(one, axes)), []).append(one)
    methods = list(dict.fromkeys(one.method for one in evaluated if one.method is not None))
    order = sorted(
        groups, key=lambda key: (-1 if key[0] is None else methods.index(key[0]), key[1])
    )
    return [sorted(groups[key], key=lambda one: (one.seed is not None, one.seed)) for key in order]


def _rounded(one: Evaluated, axes: Sequence[str]) -> Weights:
    """The weights as a key: those of a grid and those of a list may differ in their last bits."""
    return tuple(round(float(one.weights[axis]), 9) for axis in axes) if one.weights else ()


def _check_rewards(one: Evaluated, value: str, prompts: int) -> None:
    rewards = np.asarray(one.rewards[value])
    if rewards.shape != (prompts,) or not prompts:
        raise ValueError(f"{one.name}: {value} has rewards {rewards.shape}, not ({prompts},)")
    broken = np.flatnonzero(~np.isfinite(rewards))
    if len(broken):
        raise UserError(
            f"{one.name}: the reward of `{value}` is {rewards[broken[0]]} for prompt number"
            f" {broken[0] + 1}; fix the reward or name another one as `judge`"
        )
