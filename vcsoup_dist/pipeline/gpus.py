"""How many GPUs a stage holds while it runs."""

from __future__ import annotations

from vcsoup_dist.pipeline.stages import Stage
from vcsoup_dist.recipe import ColumnsReward, Recipe
from vcsoup_dist.records.history import OfRanks


def gpus_asked(recipe: Recipe, stage: Stage) -> float | OfRanks:
    """Those that its actors ask for, all pools together; `ranks` where it starts ranks."""
    if stage.job.runs == "ranks":
        return "ranks"
    if stage.name == "evaluate":
        return recipe.evaluation.actors * recipe.evaluation.gpus_per_actor
    if stage.name != "score":
        return 0.0
    from vcsoup_dist.scoring.rewards import by_model  # imports numpy, `vcsoup status` does not

    rewards = {
        name: value.reward
        for name, value in recipe.values.items()
        if not isinstance(value.reward, ColumnsReward)
    }
    firsts = (next(iter(group.values())) for group in by_model(rewards))
    pools = [first.pool or recipe.scoring for first in firsts]
    return sum(pool.actors * pool.gpus_per_actor for pool in pools)
