"""Which values the answers are judged for together."""

from __future__ import annotations

from vcsoup_dist.evaluation.judges import share_models
from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import ActorPool, CallableReward, ClassifierReward


def test_values_that_are_read_from_one_model_have_one_judge():
    rewards = {
        "helpful": ClassifierReward(classifier="m", output=0),
        "brief": CallableReward(callable="a.py:brief"),
        "honest": ClassifierReward(classifier="m", output=3, sign=-1, pool=ActorPool(actors=2)),
        "harmless": ClassifierReward(classifier="m", text="pair"),
    }
    sources = {value: Located(value, None, None) for value in rewards}
    judges = share_models(rewards, sources)
    assert [list(judge.rewards) for judge in judges] == [
        ["helpful", "honest"],
        ["brief"],
        ["harmless"],
    ]
    assert [judge.source for judge in judges] == [
        sources[v] for v in ("helpful", "brief", "harmless")
    ]
    assert judges[0].rewards["honest"] is rewards["honest"]
