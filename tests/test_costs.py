"""What training takes, before and after, against sums by hand."""

from __future__ import annotations

import pytest

from vcsoup_dist.check.method_costs import planned_cost
from vcsoup_dist.check.steps import Steps
from vcsoup_dist.recipe import Training
from vcsoup_dist.records.step_metrics import StepMetrics
from vcsoup_dist.report.statistics.cost import MethodCost, StepsTaken, method_cost, steps_taken


def logged(step: int, ranks: int = 2, gpus: int = 0, **changes: float) -> StepMetrics:
    values = {"tokens": 100 + step, "step_seconds": 36.0, "ranks": ranks, "gpus": gpus}
    return StepMetrics(step, values | changes)


def test_a_policy_takes_the_sum_of_its_steps_whatever_ranks_took_them():
    taken = steps_taken([logged(0), logged(1, ranks=4, gpus=4), logged(2, ranks=1, gpus=1)])
    assert taken == StepsTaken(3, 303, 108.0, pytest.approx(0.07), pytest.approx(0.05))


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [logged(1)],
        [logged(0), logged(2)],
        [logged(0), StepMetrics(1, {"loss": 1.0, "step_seconds": 2.0})],
    ],
)
def test_what_a_log_does_not_say_is_not_made_up(metrics):
    assert steps_taken(metrics) is None


def test_a_method_takes_what_its_policies_take_and_no_time_where_one_is_not_known():
    one = steps_taken([logged(0), logged(1)])
    assert method_cost("a", [2, 2], [one, one], 7) == MethodCost(
        "a", 2, 4, 402, 144.0, pytest.approx(0.08), 0.0, 7
    )
    assert method_cost("a", [2, 5], [one, None], 7) == MethodCost(
        "a", 2, 7, None, None, None, None, 7
    )


def planned_steps(name: str, steps: int | None) -> Steps:
    training = Training(pairs_per_step=10)
    return Steps(f"policies/a/{name}", "training", training, 100, steps, True, True, 100)


def test_a_plan_costs_its_steps_and_the_time_of_those_that_were_measured():
    own = [planned_steps("x", 3), planned_steps("y", 5)]
    measured = [StepsTaken(4, 1000, 20.0, 0.5, 0.25)]
    found = planned_cost("a", own, 2, 50.0, measured, 9)
    assert (found.policies, found.steps, found.tokens) == (4, 16, 8000)
    assert (found.seconds, found.rank_hours, found.gpu_hours) == (80.0, 2.0, 1.0)
    before = planned_cost("a", own, 2, None, [], None)
    assert (before.steps, before.tokens, before.seconds, before.disk_bytes) == (
        16,
        None,
        None,
        None,
    )
    unknown = planned_cost("a", [*own, planned_steps("z", None)], 2, 50.0, measured, 9)
    assert (unknown.steps, unknown.tokens, unknown.seconds) == (None, None, None)


def test_an_answer_that_is_trained_on_alone_is_half_a_pair():
    sft = Training(objective="sft", pairs_per_step=20)
    one = Steps("policies/a/union", "training", sft, 100, 4, True, True, 100)
    found = planned_cost("a", [one], 1, 50.0, [], None)
    assert found.tokens == planned_cost("a", [planned_steps("x", 4)], 1, 50.0, [], None).tokens
