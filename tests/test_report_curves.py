"""Training curves in the report: what they are the means of, and their plot."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vcsoup_dist.records.step_metrics import StepMetrics
from vcsoup_dist.report.curves import POINTS, Curve, curve
from vcsoup_dist.report.plots.curve_plot import curve_plot


def log_of(steps: int, **metrics: float) -> list[StepMetrics]:
    return [StepMetrics(i, {"loss": 1 / (i + 1), **metrics}) for i in range(steps)]


def test_a_short_training_is_shown_step_by_step():
    log = log_of(3, margin=0.5)
    log[1] = StepMetrics(1, {**log[1].values, "heldout_loss": 0.25})
    found = curve("m", "helpful", 4, log)
    assert found.train == {
        "loss": ([1, 2, 3], [1, 1 / 2, 1 / 3]),
        "margin": ([1, 2, 3], [0.5] * 3),
    }
    assert found.heldout == {"loss": ([2], [0.25])}


def test_a_point_of_a_long_training_is_the_mean_of_steps_and_none_is_left_out():
    log = log_of(1010)
    steps, losses = curve("m", "helpful", 0, log).train["loss"]
    assert len(steps) == len(losses) == -(-1010 // 11) <= POINTS
    assert losses[0] == pytest.approx(np.mean([1 / (i + 1) for i in range(11)]))
    weights = [11] * 91 + [9]
    assert np.average(losses, weights=weights) == pytest.approx(
        np.mean([each.values["loss"] for each in log])
    )


def test_numbers_that_are_not_finite_are_not_drawn():
    log = [StepMetrics(0, {"loss": float("nan")}), StepMetrics(1, {"loss": 2.0})]
    assert curve("m", "x", 0, log).train == {"loss": ([2], [2.0])}
    assert curve("m", "x", 0, log[:1]).train == {}


def drawn(methods: int, policies: int, seeds: int) -> list[Curve]:
    log = log_of(5, margin=0.1, accuracy=0.75, heldout_loss=0.7)
    return [
        curve(f"m{m}", f"policy {p}", seed, log)
        for m in range(methods)
        for p in range(policies)
        for seed in range(seeds)
    ]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 2), (2, 12, 1)])
def test_curves_are_drawn_for_any_number_of_policies_and_are_the_same_bytes(shape):
    picture = curve_plot(drawn(*shape))
    assert picture == curve_plot(drawn(*shape))
    image = Image.open(io.BytesIO(picture))
    assert image.width == 1440 and image.height > 300


def test_a_curve_without_a_metric_leaves_its_panel_empty():
    whole = drawn(1, 1, 1)
    losses_alone = [replace(whole[0], train={"loss": whole[0].train["loss"]}, heldout={})]
    assert curve_plot(losses_alone) != curve_plot(whole)
    with pytest.raises(ValueError, match="no curve"):
        curve_plot([])
