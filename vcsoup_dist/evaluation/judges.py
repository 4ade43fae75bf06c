"""Which rewards judge the answers, those that share a model together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import CallableReward, ClassifierReward
from vcsoup_dist.scoring.rewards import model_key


@dataclass(frozen=True)
class Judge:
    """One model or function, and the values that it evaluates."""

    rewards: Mapping[str, ClassifierReward | CallableReward]
    """Value -> its reward."""
    source: Located


def share_models(
    rewards: Mapping[str, ClassifierReward | CallableReward], sources: Mapping[str, Located]
) -> list[Judge]:
    """The judges of all values, in the order of the first value of each.

    rewards, sources: of each value.
    """
    groups: dict[str, dict[str, ClassifierReward | CallableReward]] = {}
    for value, reward in rewards.items():
        key = model_key(reward.model_dump(mode="json", exclude={"pool"}))
        groups.setdefault(key, {})[value] = reward
    return [Judge(group, sources[next(iter(group))]) for group in groups.values()]
