"""Schedule, batches, weights and counts of the trainer against independent oracles."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answers import pack_answers, pack_pairs
from vcsoup_dist.forward.template import Encoded
from vcsoup_dist.recipe import Training
from vcsoup_dist.training.batches import micro_batches, step_pairs
from vcsoup_dist.training.flops import FlopCounter
from vcsoup_dist.training.metrics import MetricsLog
from vcsoup_dist.training.offload import is_offloaded
from vcsoup_dist.training.schedule import count_steps, learning_rate
from vcsoup_dist.training.selection import consistency_weights


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
@example([9, 9, 2], 1, 10)  # two full micro-batches, and one pair that fits into neither
def test_every_rank_runs_the_same_number_of_micro_batches_and_each_pair_once(costs, ranks, budget):
    plan = micro_batches(costs, ranks, budget)
    assert len(plan) == ranks
    assert len({len(batches) for batches in plan}) == 1
    assert sorted(i for batches in plan for batch in batches for i in batch) == list(
        range(len(costs))
    )
    for batch in (batch for batches in plan for batch in batches):
        assert len(batch) <= 1 or sum(costs[i] for i in batch) <= budget
    loads = [sum(costs[i] for i in batch) for batches in plan for batch in batches]
    assert max(loads) - min(loads) <= max(costs)


def test_micro_batches_that_run_at_the_same_time_have_similar_sizes():
    """The slowest rank sets the pace: what a step takes is the sum of each round's longest."""
    draw = np.random.default_rng(0)
    costs = draw.integers(50, 1500, 64).tolist()
    plan = micro_batches(costs, 4, 4096)
    rounds = [
        max(sum(costs[i] for i in batches[m]) for batches in plan) for m in range(len(plan[0]))
    ]
    assert sum(rounds) < 1.03 * sum(costs) / 4


def test_the_learning_rate_warms_up_and_then_falls():
    training = Training(learning_rate=1.0, warmup_ratio=0.2, schedule="cosine")
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


def test_weights_by_consistency_are_in_proportion_to_1_plus_c_and_have_the_mean_1():
    assert consistency_weights(np.array([1.0, 0.0])) == pytest.approx([4 / 3, 2 / 3])


def test_a_pair_whose_gaps_are_all_zero_is_weighted_as_if_its_values_half_agreed():
    assert consistency_weights(np.array([1.0, np.nan])) == pytest.approx([4 / 3, 2 / 3])


def test_flops_are_those_of_the_formula_per_weight_token_and_visible_key():
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    model = transformers.LlamaForCausalLM(config)
    counter = FlopCounter(config, {name: p.shape for name, p in model.named_parameters()}, 1.0)
    pair = (Encoded(list(range(10)), 6), Encoded([*range(6), 40, 41], 6))
    layers = 3 * (4 * 32 * 32 + 3 * 32 * 48)
    tokens, answers = 12, 6  # the prompt's six tokens once
    seen = sum(range(1, 11)) + 7 + 8
    expected = 6 * layers * tokens + 6 * 50 * 32 * answers + 12 * 3 * 32 * seen
    assert counter.of(pack_pairs([pair])).item() == expected


def test_a_sliding_window_costs_only_what_it_sees():
    config = transformers.Gemma2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=8,
        sliding_window=3,
    )
    pack = pack_answers([Encoded(list(range(10)), 9)])
    attention = FlopCounter(config, {}, 1.0).of(pack).item() - 6 * 50 * 32
    assert attention == 12 * 32 * (sum(range(1, 11)) + 1 + 2 + 8 * 3)


def test_activations_are_offloaded_and_weights_and_small_tensors_are_not():
    weight = torch.nn.Parameter(torch.zeros(1024, 1024))
    activation = torch.ones(1024, 1024) @ weight
    assert is_offloaded(activation) and is_offloaded(activation.T)
    assert not is_offloaded(weight) and not is_offloaded(weight.T)
    assert not is_offloaded(activation[0])
    assert not is_offloaded(activation > 0)


def test_a_missing_wandb_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="launch.wandb: the package wandb cannot be imported"):
        MetricsLog(tmp_path, 0, "project", "policy")


def test_a_resumed_run_continues_its_wandb_run_and_a_fresh_one_starts_another(
    tmp_path, monkeypatch
):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for first_step in (0, 2, 0):
        with MetricsLog(tmp_path, first_step, "project", "policy") as metrics:
            metrics.write(first_step, {"loss": 1.0})
            ids.append(wandb.run.id)
    assert ids[0] == ids[1] != ids[2]


def test_a_resumed_run_drops_the_lines_of_steps_that_it_takes_again(tmp_path):
    with MetricsLog(tmp_path, 0) as metrics:
        for step in range(4):
            metrics.write(step, {"loss": 1.0 - step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    with MetricsLog(tmp_path, 2) as metrics:
        metrics.write(2, {"loss": 5.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.0}, {"step": 2, "loss": 5.0}]
