"""Objectives, schedule and batches against independent oracles."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Training
from vcsoup_dist.training import objectives
from vcsoup_dist.training.batches import micro_batches, step_pairs
from vcsoup_dist.training.deepspeed_config import FOLDERS, fill_deepspeed_config
from vcsoup_dist.training.loop import count_steps
from vcsoup_dist.training.schedule import learning_rate


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-300, 0), min_size=4, max_size=4),
    st.floats(0.01, 1),
    st.floats(0, 0.49),
)
def test_dpo_equals_trls_formula_and_its_derivative_in_float64(sums, beta, smoothing):
    """TRL's sigmoid loss: -logsigmoid(beta * (logratio - reference logratio)), label-smoothed."""
    chosen, rejected, reference_chosen, reference_rejected = sums
    h = beta * ((chosen - rejected) - (reference_chosen - reference_rejected))
    sigmoid = 1 / (1 + math.exp(-h)) if h > -700 else 0.0
    expected = (1 - smoothing) * np.logaddexp(0, -h) + smoothing * np.logaddexp(0, h)
    slope = -beta * ((1 - smoothing) * (1 - sigmoid) - smoothing * sigmoid)

    tensors = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in sums]
    loss = objectives.dpo(*tensors, beta, smoothing)
    loss.sum().backward()

    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert tensors[0].grad.item() == pytest.approx(slope, rel=1e-7, abs=1e-12)
    assert tensors[1].grad.item() == pytest.approx(-slope, rel=1e-7, abs=1e-12)


def test_dpo_is_ln_2_where_policy_equals_reference():
    sums = torch.tensor([-12.0, -90.0])
    assert torch.allclose(
        objectives.dpo(sums, sums, sums, sums, 0.1), torch.full((2,), math.log(2))
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 3))
def test_steps_walk_through_every_pair_once_an_epoch(pairs, per_step, seed):
    steps = -(-3 * pairs // per_step)
    walked = [i for step in range(steps) for i in step_pairs(pairs, per_step, seed, step)]
    assert len(walked) == steps * per_step
    for epoch in range(3):
        assert sorted(walked[epoch * pairs : (epoch + 1) * pairs]) == list(range(pairs))


def test_a_steps_pairs_depend_on_seed_and_step_alone():
    assert step_pairs(100, 8, 1, 5) == step_pairs(100, 8, 1, 5)
    assert step_pairs(100, 8, 1, 5) != step_pairs(100, 8, 2, 5)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 120)
)
def test_every_rank_runs_the_same_number_of_micro_batches_and_each_pair_once(costs, ranks, budget):
    plan = micro_batches(costs, ranks, budget)
    assert len(plan) == ranks
    assert len({len(batches) for batches in plan}) == 1
    assert sorted(i for batches in plan for batch in batches for i in batch) == list(
        range(len(costs))
    )
    for batch in (batch for batches in plan for batch in batches):
        assert len(batch) <= 1 or sum(costs[i] for i in batch) <= budget
    loads = [sum(costs[i] for batch in batches for i in batch) for batches in plan]
    assert max(loads) - min(loads) <= max(costs)


def test_the_learning_rate_warms_up_and_then_falls():
    training = Training(learning_rate=1.0, warmup=0.2, schedule="cosine")
    rates = [learning_rate(step, 10, training) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert all(later < earlier for earlier, later in zip(rates[2:], rates[3:], strict=False))
    assert 0 < rates[-1] < 0.05


def test_equal_steps_count_the_pairs_before_filtering():
    training = Training(pairs_per_step=10, epochs=2)
    assert count_steps(training, unfiltered_pairs=95, pairs=30) == 19
    own = Training(pairs_per_step=10, epochs=2, equal_steps=False)
    assert count_steps(own, unfiltered_pairs=95, pairs=30) == 6
    assert count_steps(Training(steps=3), unfiltered_pairs=95, pairs=30) == 3


def test_every_deepspeed_config_is_filled_from_the_recipe():
    training = Training(learning_rate=3e-6, max_grad_norm=0.7, dtype="fp32")
    files = sorted(FOLDERS[0].glob("*.json"))
    assert files
    for file in files:
        config = fill_deepspeed_config(file, training)
        assert "auto" not in json.dumps(config)
        assert config["optimizer"]["params"]["lr"] == 3e-6
        assert config["gradient_clipping"] == 0.7
        assert config["bf16"] == {"enabled": False}


def test_a_deepspeed_config_that_contradicts_the_recipe_is_refused(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"gradient_clipping": 3.0}')
    with pytest.raises(UserError, match=r"gradient_clipping is 3.0, the recipe says 1.0"):
        fill_deepspeed_config(file, Training())
