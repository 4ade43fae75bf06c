"""Objectives and the loss of a step against plain float64, without a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcsoup_dist.recipe import Objective, Training
from vcsoup_dist.training.objectives import (
    OBJECTIVES,
    LossTargets,
    PairLogps,
    dpo,
    robust,
    step_loss,
)

SIDES = (
    *("chosen", "rejected", "reference_chosen", "reference_rejected"),
    *("chosen_tokens", "rejected_tokens"),
)


@dataclass(frozen=True)
class Numbers:
    """One pair and the recipe's numbers, in Python's float64."""

    chosen: float
    rejected: float
    reference_chosen: float
    reference_rejected: float
    chosen_tokens: int
    rejected_tokens: int
    label: float
    margin: float
    divisor: float
    beta: float
    label_smoothing: float
    simpo_margin: float

    @property
    def h(self) -> float:
        ratio_chosen = self.chosen - self.reference_chosen
        return ratio_chosen - (self.rejected - self.reference_rejected)

    def tensors(self) -> PairLogps:
        def tensor(value: float) -> torch.Tensor:
            return torch.tensor([value], dtype=torch.float64, requires_grad=True)

        sides = {name: tensor(getattr(self, name)) for name in SIDES}
        targets = LossTargets(tensor(self.label), tensor(self.margin), self.divisor)
        return PairLogps(**sides, targets=targets)

    def training(self) -> Training:
        return Training(
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            simpo_margin=self.simpo_margin,
        )


LOGPS = st.floats(-2000, 0)
NUMBERS = st.builds(
    Numbers,
    *[LOGPS] * 4,
    chosen_tokens=st.integers(1, 2000),
    rejected_tokens=st.integers(1, 2000),
    label=st.one_of(st.just(1.0), st.floats(0, 1)),
    margin=st.one_of(st.just(0.0), st.floats(-20, 20)),
    divisor=st.one_of(st.just(1.0), st.floats(0.1, 1)),
    beta=st.floats(0.01, 3),
    label_smoothing=st.floats(0, 0.45),
    simpo_margin=st.floats(0, 5),
)


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return float(np.logaddexp(0, x))


def sigmoid(x: float) -> float:
    return float(np.exp(-np.logaddexp(0, -x)))


# Loss, and its derivatives by log pi(y_w) and by log pi(y_l).
Oracle = Callable[[Numbers], tuple[float, float, float]]


def dpo_in_numpy(x: Numbers) -> tuple[float, float, float]:
    z = (x.beta * x.h - x.margin) / x.divisor
    p = x.label + x.label_smoothing * (1 - 2 * x.label)
    slope = x.beta / x.divisor * (sigmoid(z) * (1 - p) - p * sigmoid(-z))
    return p * softplus(-z) + (1 - p) * softplus(z), slope, -slope


def robust_in_numpy(x: Numbers) -> tuple[float, float, float]:
    h, eps = x.beta * x.h, x.label_smoothing
    loss = ((1 - eps) * softplus(-h) - eps * softplus(h)) / (1 - 2 * eps)
    slope = -x.beta * ((1 - eps) * sigmoid(-h) + eps * sigmoid(h)) / (1 - 2 * eps)
    return loss, slope, -slope


def hinge_in_numpy(x: Numbers) -> tuple[float, float, float]:
    gap = 1 - x.beta * x.h
    slope = -x.beta if gap > 0 else 0.0
    return max(0.0, gap), slope, -slope


def ipo_in_numpy(x: Numbers) -> tuple[float, float, float]:
    h = (x.chosen - x.reference_chosen) / x.chosen_tokens
    h -= (x.rejected - x.reference_rejected) / x.rejected_tokens
    off = h - 0.5 / x.beta
    return off**2, 2 * off / x.chosen_tokens, -2 * off / x.rejected_tokens


def simpo_in_numpy(x: Numbers) -> tuple[float, float, float]:
    per_token = x.chosen / x.chosen_tokens - x.rejected / x.rejected_tokens
    z = x.beta * per_token - x.simpo_margin
    slope = -x.beta * sigmoid(-z)
    return softplus(-z), slope / x.chosen_tokens, -slope / x.rejected_tokens


def sft_in_numpy(x: Numbers) -> tuple[float, float, float]:
    return -x.chosen, -1.0, 0.0


ORACLES: dict[Objective, Oracle] = {
    "dpo": dpo_in_numpy,
    "robust": robust_in_numpy,
    "hinge": hinge_in_numpy,
    "ipo": ipo_in_numpy,
    "simpo": simpo_in_numpy,
    "sft": sft_in_numpy,
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=100, deadline=None)
@given(numbers=NUMBERS)
def test_value_and_derivative_equal_the_formula_in_float64(objective, numbers):
    value, by_chosen, by_rejected = ORACLES[objective](numbers)
    pairs = numbers.tensors()
    loss = OBJECTIVES[objective].loss(pairs, numbers.training())
    slopes = torch.autograd.grad(loss.sum(), (pairs.chosen, pairs.rejected), materialize_grads=True)
    assert loss.dtype == torch.float64 and loss.shape == (1,)
    # Up to what subtracting terms as large as |beta h| leaves of float64.
    assert loss.item() == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert [slope.item() for slope in slopes] == pytest.approx(
        [by_chosen, by_rejected], rel=1e-9, abs=1e-12
    )


@settings(max_examples=100, deadline=None)
@given(NUMBERS)
def test_robust_with_labels_flipped_at_its_rate_is_on_average_the_clean_dpo(numbers):
    numbers = replace(numbers, label=1.0, margin=0.0, divisor=1.0)
    eps = numbers.label_smoothing
    pairs = numbers.tensors()
    flipped = PairLogps(
        chosen=pairs.rejected,
        rejected=pairs.chosen,
        reference_chosen=pairs.reference_rejected,
        reference_rejected=pairs.reference_chosen,
        chosen_tokens=pairs.rejected_tokens,
        rejected_tokens=pairs.chosen_tokens,
    )
    training = numbers.training()
    average = (1 - eps) * robust(pairs, training) + eps * robust(flipped, training)
    clean = dpo(pairs, training.model_copy(update={"label_smoothing": 0.0}))
    assert average.item() == pytest.approx(clean.item(), rel=1e-9, abs=1e-9)
    inputs = (pairs.chosen, pairs.rejected)
    assert [x.item() for x in torch.autograd.grad(average, inputs)] == pytest.approx(
        [x.item() for x in torch.autograd.grad(clean, inputs)], rel=1e-9, abs=1e-12
    )


def test_every_objective_of_the_recipe_has_a_loss():
    assert set(OBJECTIVES) == set(get_args(Objective))


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=40)
@given(data=st.data())
def test_parts_of_a_steps_loss_sum_to_its_weighted_mean_over_all_ranks(objective, data):
    numbers = data.draw(st.lists(NUMBERS, min_size=1, max_size=5))
    weights = data.draw(st.lists(st.floats(0, 2), min_size=len(numbers), max_size=len(numbers)))
    sft_weight = data.draw(st.floats(0, 2))
    cut = data.draw(st.integers(0, len(numbers)))
    training = (
        numbers[0].training().model_copy(update={"objective": objective, "sft_weight": sft_weight})
    )
    alike = [
        replace(each, **{name: getattr(numbers[0], name) for name in SETTINGS}) for each in numbers
    ]
    tokens = sum(each.chosen_tokens for each in alike)
    total = 0.0
    for part in (slice(0, cut), slice(cut, None)):  # as two ranks have them
        if alike[part]:
            parts = step_loss(
                together(alike[part]),
                training,
                torch.tensor(weights[part], dtype=torch.float64),
                len(alike),
                tokens,
            )
            assert parts.shape == (len(alike[part]),)
            total += parts.sum().item()
    losses = [
        weight * ORACLES[objective](each)[0] for weight, each in zip(weights, alike, strict=True)
    ]
    if objective == "sft":
        expected = sum(losses) / tokens
    else:
        expected = sum(losses) / len(alike) - sft_weight * sum(e.chosen for e in alike) / tokens
    assert total == pytest.approx(expected, rel=1e-9, abs=1e-7)


SETTINGS = ("beta", "label_smoothing", "simpo_margin", "divisor")


def together(numbers: list[Numbers]) -> PairLogps:
    """Pairs of one micro-batch."""
    parts = [each.tensors() for each in numbers]
    sides = {name: torch.cat([getattr(part, name) for part in parts]) for name in SIDES}
    label, margin = (torch.cat([part.targets[i] for part in parts]) for i in range(2))
    return PairLogps(**sides, targets=LossTargets(label, margin, parts[0].targets.divisor))
