"""The first loss against the objective's own, whatever its settings; weights that are NaN."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_world import World

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Training
from vcsoup_dist.training.start_checks import chance_warning, drifts, first_loss_fault

THEORY = {
    "dpo": ({}, math.log(2)),
    "dpo smoothed": ({"objective": "dpo", "label_smoothing": 0.2}, math.log(2)),
    "robust": ({"objective": "robust", "label_smoothing": 0.3}, math.log(2)),
    "hinge": ({"objective": "hinge", "beta": 0.5}, 1.0),
    "ipo": ({"objective": "ipo", "beta": 0.05}, 100.0),
}


def logps(noise: float, shift: float = 0.0, pairs: int = 8, tokens: int = 20):
    """Reference log-probs of pairs of two answers, and the policy's; float64."""
    draw = np.random.default_rng(0)
    reference = -draw.exponential(2.0, 2 * pairs * tokens)
    side = np.repeat(np.tile([1.0, -1.0], pairs), tokens)
    policy = reference + noise * draw.standard_normal(len(reference)) + shift * side
    return torch.from_numpy(policy), torch.from_numpy(reference), [tokens] * 2 * pairs


@pytest.mark.parametrize("settings, theory", THEORY.values(), ids=THEORY.keys())
def test_a_first_loss_off_the_objectives_own_is_refused_and_rounding_is_not(settings, theory):
    for dtype, rounding, shift in (("bf16", 0.02, 0.03), ("fp32", 1e-6, 1e-4)):
        training = Training(dtype=dtype, **settings)
        found = drifts(*logps(rounding), training)
        assert [each.theory for each in found] == pytest.approx([theory] * 8)
        assert first_loss_fault(found, training) is None
        fault = first_loss_fault(drifts(*logps(rounding, shift), training), training)
        assert fault is not None and f"starts at {theory:.4f}" in fault


def test_differences_without_a_direction_are_refused_where_they_are_more_than_rounding():
    training = Training(dtype="bf16")
    fault = first_loss_fault(drifts(*logps(0.2), training), training)
    assert fault is not None and "nats on average" in fault


def test_a_model_at_chance_is_warned_of_without_a_reference():
    sft, simpo = Training(objective="sft"), Training(objective="simpo", beta=2.0)
    assert "guessing among 1000 tokens (6.91)" in str(chance_warning({"loss": 7.0}, sft, 1000))
    assert chance_warning({"loss": 3.0}, sft, 1000) is None
    assert chance_warning({"chosen_reward": -14.0}, simpo, 1000) is not None
    assert chance_warning({"chosen_reward": -6.0}, simpo, 1000) is None
    assert chance_warning({"loss": 9.0}, Training(), 1000) is None


@pytest.mark.models
@pytest.mark.ranks
def test_weights_that_are_nan_are_named_before_any_log_prob_is_kept(tiny_model, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    held = load_file(base / "model.safetensors")
    held["model.layers.1.mlp.up_proj.weight"][3, 3] = math.nan
    save_file(held, base / "model.safetensors", metadata={"format": "pt"})
    root = tmp_path / "world"
    root.mkdir()
    world = World(root, base)
    with pytest.raises(UserError, match="hold NaN or infinity in model.layers.1.mlp.up_proj.weig"):
        world.run(world.reference_job(), ranks=2)
