"""Labels, margins and weights of reweighting methods against their definitions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Training
from vcsoup_dist.records.reweighting import Reweighting
from vcsoup_dist.records.union import Temperature, UnionManifest
from vcsoup_dist.training.objectives import LossTargets, PairLogps, dpo
from vcsoup_dist.training.reweighting import (
    NO_WEIGHT,
    TIE,
    Scales,
    UnionPairs,
    reweigh,
    select_reweighted,
)
from vcsoup_dist.union.preferences import human_preferences
from vcsoup_dist.union.temperatures import LARGEST_LOGIT, fit_temperature, shared_temperature

SCALES = Scales(np.array([2.0, 0.5]), np.array([1.5, 4.0]))
OWN = {"u": ["u"], "v": ["v"]}


def pairs_of(prefers, gaps, dataset=None, once=None) -> UnionPairs:
    count = len(gaps)
    return UnionPairs(
        np.array(dataset or ["u"] * count),
        np.arange(count, dtype=np.uint32),
        None,  # type: ignore[arg-type]
        np.array(once if once is not None else [True] * count),
        np.array(prefers, float),
        np.array(gaps, float),
    )


def how(labels, u: float, datasets=OWN, value=None) -> Reweighting:
    return Reweighting(labels, {"u": u, "v": 1 - u}, datasets, value)


PAIRS = pairs_of(
    prefers=[(1, 1), (1, -1), (-1, 1), (1, 0), (0, 0), (1, 1)],
    gaps=[(2, 0.25), (2, -1), (-1, 0.5), (4, 0), (0, 0), (-3, 1)],
    dataset=["u", "u", "v", "v", "u", "v"],
    once=[True, True, True, True, True, False],
)


def test_relabelled_takes_the_sign_of_the_weighted_scaled_gaps_and_leaves_ties_out():
    found = reweigh(PAIRS, how("sign", 0.5), SCALES)
    # (1 + 0.5) / 2, (1 - 2) / 2, (-0.5 + 1) / 2, (2 + 0) / 2, and a tie; the last is seen before.
    assert found.place.tolist() == [0, 1, 2, 3]
    assert found.label.tolist() == [1, 0, 1, 1]
    assert found.left_out == {TIE: 1}
    corner = reweigh(PAIRS, how("sign", 1.0), SCALES)
    assert dict(zip(corner.place.tolist(), corner.label.tolist(), strict=True)) == {
        0: 1.0, 1: 1.0, 2: 0.0, 3: 1.0,
    }  # fmt: skip


def test_votes_are_the_weighted_share_of_the_values_that_prefer_the_chosen_answer():
    found = reweigh(PAIRS, how("votes", 0.25), SCALES)
    assert found.place.tolist() == [0, 1, 2, 3, 4]
    assert found.label.tolist() == [1, 0.25, 0.75, 0.25 + 0.75 / 2, 0.5]


def test_logits_are_the_weighted_sum_of_rewards_in_units_of_their_temperatures():
    found = reweigh(PAIRS, how("logits", 0.25), SCALES)
    for place, p in zip(found.place, found.label, strict=True):
        u, v = PAIRS.gaps[place]
        assert p == pytest.approx(1 / (1 + math.exp(-(0.25 * 1.5 * u + 0.75 * 4.0 * v))), rel=1e-12)


def test_own_labels_weigh_each_values_pairs_by_its_share():
    found = reweigh(PAIRS, how("own", 0.25), SCALES)
    assert found.place.tolist() == [0, 1, 4, 2, 3, 5]  # also what the union has once already
    assert found.label.tolist() == [1] * 6
    assert found.weight.tolist() == [0.5] * 3 + [1.5] * 3
    corner = reweigh(PAIRS, how("own", 1.0), SCALES)
    assert corner.place.tolist() == [0, 1, 4] and corner.weight.tolist() == [2] * 3
    assert corner.left_out == {NO_WEIGHT: 3}


def test_modpo_takes_one_values_pairs_with_the_others_rewards_as_margin():
    found = reweigh(PAIRS, how("margin", 0.4, value="v"), SCALES)
    assert found.place.tolist() == [2, 3, 5] and found.label.tolist() == [1] * 3
    assert found.margin == pytest.approx([0.4 * 1.5 * gap for gap in (-1, 4, -3)])


def test_a_value_without_pairs_of_its_own_labels_those_that_it_borrows():
    borrowed = {"u": ["u"], "v": ["u"]}
    found = reweigh(PAIRS, how("margin", 0.4, borrowed, "v"), SCALES)
    assert found.place.tolist() == [0, 1]  # the third is a tie for it
    assert found.label.tolist() == [1, 0]
    assert found.margin == pytest.approx([0.4 * 1.5 * 2, 0.4 * 1.5 * 2])
    assert found.left_out == {TIE: 1}


def loss(h: torch.Tensor, beta: float, **targets: object) -> torch.Tensor:
    zero = torch.zeros_like(h)
    aims = LossTargets(**targets)
    return dpo(PairLogps(h, zero, zero, zero, zero, zero, aims), Training(beta=beta))  # type: ignore[arg-type]


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=4), st.floats(-30, 30), st.data())
def test_weighted_losses_of_all_values_are_one_loss_of_the_soft_label(votes, h, data):
    """DPO-LW's identity: the loss is linear in the label."""
    raw = data.draw(st.lists(st.floats(0.01, 1), min_size=len(votes), max_size=len(votes)))
    weights = [each / sum(raw) for each in raw]
    at = torch.tensor([h], dtype=torch.float64)
    each = [loss(at, 0.3, label=(vote + 1) / 2) for vote in votes]
    summed = sum(w * one for w, one in zip(weights, each, strict=True))
    p = sum(w * (vote + 1) / 2 for w, vote in zip(weights, votes, strict=True))
    assert summed.item() == pytest.approx(loss(at, 0.3, label=p).item(), rel=1e-9, abs=1e-9)


def test_the_optimum_of_scalarised_is_the_weighted_sum_of_rewards():
    """On a table: one prompt, four answers, a free log-prob each, all pairs of answers."""
    draw = np.random.default_rng(0)
    rewards = draw.normal(size=(4, 2))
    first, second = np.triu_indices(4, 1)
    pairs = pairs_of(np.ones((6, 2)), rewards[first] - rewards[second])
    p = torch.tensor(reweigh(pairs, how("logits", 0.3), SCALES).label)
    reference = torch.tensor(draw.normal(size=4)).log_softmax(0)
    logits = reference.clone().requires_grad_(True)
    beta = 0.2
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, lr=1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        policy = logits.log_softmax(0)
        sides = (policy[first], policy[second], reference[first], reference[second])
        ones = torch.ones(6, dtype=torch.float64)
        total = dpo(PairLogps(*sides, ones, ones, LossTargets(p)), Training(beta=beta)).sum()
        total.backward()
        return total

    optimizer.step(closure)
    ratio = (logits.log_softmax(0) - reference).detach().numpy()
    wanted = rewards @ (np.array([0.3, 0.7]) * SCALES.temperature)
    assert beta * (ratio - ratio[0]) == pytest.approx(wanted - wanted[0], abs=1e-4)


def test_modpo_with_all_weight_on_its_value_is_dpo():
    found = reweigh(PAIRS, how("margin", 1.0, value="u"), SCALES)
    assert found.margin.tolist() == [0] * 3 and found.label.tolist() == found.weight.tolist()
    h = torch.linspace(-9, 9, 7, dtype=torch.float64)
    assert torch.equal(loss(h, 0.1, label=1.0, margin=0.0, divisor=1.0), loss(h, 0.1))


@pytest.mark.parametrize("labels, value", [("logits", None), ("margin", "u")])
def test_a_reward_that_is_no_better_than_chance_is_refused_where_it_is_summed(
    tmp_path, labels, value
):
    temperatures = {"u": Temperature(0.5, 80, 0.7), "v": Temperature(None, 40, 0.45)}
    UnionManifest(
        ["u", "v"],
        9,
        9,
        9,
        0,
        0,
        {"u": 0, "v": 0},
        {"u": 1, "v": 1},
        {"u": 5, "v": 5},
        temperatures,
    ).write(tmp_path)
    line = (
        r"values.v: its reward agrees with its held-out pairs no better than chance \(45% of 40\)"
    )
    with pytest.raises(UserError, match=line):
        select_reweighted(tmp_path / "x.npy", {}, tmp_path, how(labels, 0.5, value=value))


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=60))
def test_a_temperature_has_the_largest_likelihood_up_to_its_cap(whole):
    gaps = np.array(whole) / 8
    found = fit_temperature(gaps)
    assert found.pairs == len(gaps)
    if gaps.sum() <= 0:
        assert found.a is None
        return
    assert found.a is not None and found.a > 0
    told = gaps[gaps != 0]
    most = LARGEST_LOGIT / np.median(np.abs(told))
    tried = np.linspace(0, most, 2001)[:, None]
    likelihood = -np.logaddexp(0, -tried * told).sum(axis=1)
    own = -np.logaddexp(0, -found.a * told).sum()
    assert found.a <= most * (1 + 1e-12)
    assert own >= likelihood.max() - 1e-9
    assert found.capped == (found.a == most)


def test_a_value_without_labels_has_the_others_typical_temperature():
    fitted = {"u": fit_temperature(np.array([1.0, 2, -1])), "w": fit_temperature(np.array([1.0]))}
    std = {"u": 2.0, "w": 3.0, "v": 0.5}
    a = shared_temperature(fitted, std, "v").a
    kappa = math.sqrt(fitted["u"].a * 2.0 * fitted["w"].a * 3.0)
    assert a == pytest.approx(kappa / 0.5)
    nothing = {"u": dataclasses.replace(fitted["u"], a=None)}
    assert shared_temperature(nothing, std, "v").a is None


COMPARED = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.integers(-1, 2)), min_size=1, max_size=12
)


@given(COMPARED)
def test_answers_that_several_datasets_compare_have_all_their_labels(rows):
    """Against one pair after the other. A row: two answers, their order, and whose dataset."""
    answers = np.array([each for each, _, _ in rows], np.uint64)
    ids = np.array([2 * each + turned for each, turned, _ in rows], np.uint64)
    own = np.array([value for *_, value in rows])
    signs, compared, first = human_preferences(ids, answers, own, 3)
    for i, (each, turned, _) in enumerate(rows):
        same = [(other, value) for which, other, value in rows if which == each]
        assert first[i] == all(row[0] != each for row in rows[:i])
        for j in range(3):
            votes = [1 if other == turned else -1 for other, value in same if value == j]
            assert compared[i, j] == bool(votes)
            assert signs[i, j] == np.sign(sum(votes))
