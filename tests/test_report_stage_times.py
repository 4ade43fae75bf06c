"""What the report says that every stage took, from the records of its executions."""

from __future__ import annotations

import pytest

from vcsoup_dist.pipeline.gpus import gpus_asked
from vcsoup_dist.pipeline.stages import STAGES
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.history import Execution
from vcsoup_dist.report.stage_times import StageTime, stage_time


def execution(began, ended, gpus=None, running=False) -> Execution:
    return Execution("s", {}, began, ended, None, None, "n1", 1, None, None, running, gpus=gpus)


def test_seconds_are_those_in_which_one_ran_and_gpu_hours_those_of_all():
    both = [execution(0, 3600, 2.0), execution(1800, 5400, 0.5)]
    assert stage_time(both, None, 9000) == StageTime("s", 2, 0, 5400, 2.5)


def test_gpus_of_ranks_are_those_that_their_steps_name():
    ranks = [execution(0, 7200, "ranks")]
    assert stage_time(ranks, 4.0, 9000).gpu_hours == 8.0
    assert stage_time(ranks, 0.0, 9000).gpu_hours == 0.0
    assert stage_time(ranks, None, 9000).gpu_hours is None


def test_what_is_not_known_is_not_made_up():
    killed = [execution(0, None, 1.0), execution(3600, 7200, 1.0)]
    assert stage_time(killed, None, 9000) == StageTime("s", 2, 1, 3600, 1.0)
    assert stage_time([execution(0, 10), execution(20, 30, 1.0)], 1.0, 99).gpu_hours is None
    running = [execution(5400, None, 1.0, running=True)]
    assert stage_time(running, None, 9000) == StageTime("s", 1, 0, 3600, 1.0)


@pytest.mark.parametrize(
    "stage, gpus", [("read", 0), ("score", 7), ("filter", 0), ("train", "ranks"), ("evaluate", 6),
                    ("reference", "ranks"), ("merge", 0), ("report", 0)]
)  # fmt: skip
def test_actors_hold_the_gpus_that_their_pools_ask_for(stage, gpus):
    """A model that serves two values is loaded once; a function has a pool too."""
    data = {"path": "pairs.jsonl"}
    shared = {"classifier": "rm"}
    own = {"callable": "r.py:f", "pool": {"actors": 2, "gpus_per_actor": 0.5}}
    values = {
        "a": {"data": data, "reward": {**shared, "output": 0}},
        "b": {"data": data, "reward": {**shared, "output": 1}},
        "c": {"data": data, "reward": own},
        "d": {"data": data, "reward": {"columns": ["d+", "d-"]}, "judge": own},
    }
    recipe = Recipe(
        name="x",
        model="m",
        values=values,
        soup={"grid": 0.5},
        scoring={"actors": 6, "gpus_per_actor": 1},
        evaluation={"actors": 3, "gpus_per_actor": 2},
    )
    assert gpus_asked(recipe, STAGES[stage]) == gpus
