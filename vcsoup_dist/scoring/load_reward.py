"""Loading the rewards of a recipe, each kind from its own module."""

from __future__ import annotations

from collections.abc import Sequence

from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import CallableReward, ClassifierReward
from vcsoup_dist.scoring.rewards import Reward


def load_reward(
    rewards: Sequence[ClassifierReward | CallableReward],
    source: Located,
    *,
    device: str = "cpu",
    tokens_per_batch: int | None = None,
    values: Sequence[str] = (),
) -> Reward:
    """Load the rewards of V values, which share a model, from where the plan found it.

    `tokens_per_batch`: None takes what is usual for the device; `values`: what errors call the
    rewards. Raises UserError naming the model or function.
    """
    first = rewards[0]
    if isinstance(first, CallableReward):
        from vcsoup_dist.scoring.function import FunctionReward

        functions = [each for each in rewards if isinstance(each, CallableReward)]
        return FunctionReward(functions, source)
    from vcsoup_dist.scoring.classifier import Classifier

    classifiers = [each for each in rewards if isinstance(each, ClassifierReward)]
    return Classifier(
        classifiers, source, device=device, tokens_per_batch=tokens_per_batch, values=values
    )
