"""Length, repetition and log-ratio of the answers in the report, and rewards at equal length."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vcsoup_dist.records.answers import Answers
from vcsoup_dist.records.summary import Summary
from vcsoup_dist.report.answer_figures import answer_figures, answer_warnings
from vcsoup_dist.report.answer_tables import answers_as_csv, answers_as_text
from vcsoup_dist.report.lengths import length_effect
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.report.statistics.summarise import summarise

SHAPES = st.tuples(st.integers(2, 5), st.integers(2, 6))
LENGTHS = SHAPES.flatmap(lambda shape: arrays(np.float64, shape, elements=st.integers(1, 300)))


def by_least_squares(rewards: np.ndarray, tokens: np.ndarray) -> tuple[float, np.ndarray]:
    """Slope and adjusted means from indicators of every prompt and candidate, in one regression."""
    candidates, prompts = rewards.shape
    rows = [
        np.concatenate([np.eye(candidates)[c], np.eye(prompts)[p], [tokens[c, p]]])
        for c in range(candidates)
        for p in range(prompts)
    ]
    found, *_ = np.linalg.lstsq(np.array(rows), rewards.ravel(), rcond=None)
    slope = found[-1]
    of_candidate, of_prompt = found[:candidates], found[candidates:-1]
    return slope, of_candidate + of_prompt.mean() + slope * tokens.mean()


def varies(tokens: np.ndarray) -> bool:
    within = tokens - tokens.mean(0) - tokens.mean(1, keepdims=True) + tokens.mean()
    return bool((within**2).sum() > 1e-6)


@given(LENGTHS, st.integers(0, 2**32 - 1))
def test_the_slope_and_the_adjusted_means_are_those_of_least_squares(tokens, seed):
    rewards = np.random.default_rng(seed).normal(size=tokens.shape)
    effect, adjusted = length_effect(rewards, tokens, 10, 0.95)
    if not varies(tokens):
        assert effect.slope is None and set(adjusted) == {None}
        return
    slope, means = by_least_squares(rewards, tokens)
    assert effect.slope == pytest.approx(slope, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(adjusted, means, rtol=1e-6, atol=1e-7)
    assert effect.within is not None and -1 <= effect.within <= 1


@given(LENGTHS, st.floats(-3, 3), st.integers(0, 2**32 - 1))
def test_what_length_alone_gives_is_taken_and_quality_stays(tokens, slope, seed):
    """Also where the better candidates are the longer ones."""
    draw = np.random.default_rng(seed)
    quality = draw.normal(size=len(tokens)) + tokens.mean(1) / 100
    rewards = quality[:, None] + draw.normal(size=tokens.shape[1]) + slope * tokens
    effect, adjusted = length_effect(rewards, tokens, 10, 0.95)
    if effect.slope is None:
        return
    assert effect.slope == pytest.approx(slope, abs=1e-6)
    between = np.subtract.outer(adjusted, adjusted) - np.subtract.outer(quality, quality)
    assert np.abs(between).max() < 1e-5
    assert np.mean(adjusted) == pytest.approx(rewards.mean(), abs=1e-6)


def test_the_interval_holds_the_slope_as_often_as_it_says():
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        tokens = draw.integers(5, 200, (8, 64)).astype(float)
        rewards = 0.01 * tokens + draw.normal(size=64) + draw.normal(size=(8, 64))
        effect, _ = length_effect(rewards, tokens, 400, 0.95)
        inside += effect.low <= 0.01 <= effect.high
    assert 0.91 < inside / 400 < 0.98


CANNOT = {
    "constant length": (np.ones((3, 4)), 7.0 * np.ones((3, 4))),
    "a length for each candidate": (np.eye(3, 4), np.arange(3.0)[:, None] + np.ones((3, 4))),
    "a length for each prompt": (np.eye(3, 4), np.arange(1.0, 5.0) + np.zeros((3, 4))),
    "one prompt": (np.array([[1.0], [2.0], [4.0]]), np.array([[9.0], [5.0], [7.0]])),
    "one candidate": (np.array([[1.0, 2.0, 4.0]]), np.array([[9.0, 5.0, 7.0]])),
    "NaN": (np.array([[1.0, np.nan], [0.0, 1.0]]), np.array([[1.0, 2.0], [5.0, 3.0]])),
}


@pytest.mark.parametrize("rewards, tokens", CANNOT.values(), ids=CANNOT)
def test_what_cannot_be_said_is_none(rewards, tokens):
    effect, adjusted = length_effect(rewards, tokens, 10, 0.95)
    assert effect.slope is effect.low is effect.high is effect.within is None
    assert adjusted == [None] * len(rewards)


def test_a_constant_reward_does_not_go_with_length():
    effect, adjusted = length_effect(np.full((2, 3), 0.1), np.eye(2, 3) + 1, 10, 0.95)
    assert effect.slope == pytest.approx(0) and effect.within is None
    assert adjusted == pytest.approx([0.1, 0.1])


def answers_of(rewards, tokens, finished=1.0, repeated=0.0, ratio=0.0, from_model=True) -> Answers:
    count = len(rewards)
    return Answers(
        *([f"{i}" for i in range(count)], ["d"] * count, [[]] * count, ["x"] * count),
        *(list(tokens), [i < finished * count for i in range(count)], [repeated] * count),
        *([-1.0] * count, [-1.0 - ratio] * count, [from_model] * count),
        {"u": np.array(rewards, dtype=float)},
    )


def gathered(answers: dict[str, Answers]) -> Summary:
    evaluated = []
    for name, own in answers.items():
        method, _, seed = name.partition(" ")
        known = (None,) * 3 if name == "base" else (method, int(seed), {"u": 1.0})
        evaluated.append(Evaluated(name, *known, own.rewards))
    return summarise(evaluated, resamples=100, confidence=0.95)


def test_figures_of_a_row_are_over_its_seeds_and_prompts():
    answers = {
        "base": answers_of([0, 1, 2, 3], [2, 4, 4, 2]),
        "ours 0": answers_of([1, 2, 3, 4], [6, 2, 8, 4], finished=0.5, ratio=3.0),
        "ours 1": answers_of([1, 2, 3, 5], [6, 6, 8, 4], finished=1.0, repeated=0.31, ratio=5.0),
    }
    summary = gathered(answers)
    figures = answer_figures(summary, answers)
    base, ours = figures.rows
    assert (base.method, base.tokens, base.unfinished, base.log_ratio) == (None, 3, 0, 0)
    assert (ours.tokens, ours.unfinished, ours.repeating) == (5.5, 0.25, 0.5)
    assert (ours.log_ratio, ours.log_ratio_error) == (4.0, 0.0) and figures.is_kl
    rewards = np.array([each.rewards["u"] for each in answers.values()])
    tokens = np.array([each.tokens for each in answers.values()], dtype=float)
    _, means = by_least_squares(rewards, tokens)
    assert ours.adjusted["u"] == pytest.approx((means[1] + means[2]) / 2)
    assert ours.rewards["u"] == summary.rows[1].cells["u"].mean
    lines = answer_warnings(summary, figures)
    assert [line.split(";")[0] for line in lines] == [
        "ours: 1 u: 25 % of the answers did not end within the limit",
        "ours: 1 u: 50 % of the answers repeat themselves",
    ]
    assert "1 of the 1 candidates of ours has more than a tenth of such answers." in lines[0]
    text = answers_as_text(summary, figures)
    assert "KL to theta_0" in text and all(line in text for line in lines)
    (_, found) = csv.DictReader(io.StringIO(answers_as_csv(summary, figures)))
    assert float(found["u_adjusted"]) == ours.adjusted["u"] and found["is_kl"] == "1"


def test_it_is_no_kl_where_one_model_was_not_sampled_as_it_is():
    answers = {"base": answers_of([0, 1], [2, 3]), "ours 0": answers_of([1, 1], [2, 2])}
    assert answer_figures(gathered(answers), answers).is_kl
    answers["ours 0"] = answers_of([1, 1], [2, 2], from_model=False)
    figures = answer_figures(gathered(answers), answers)
    assert not figures.is_kl
    assert "log-ratio to theta_0" in answers_as_text(gathered(answers), figures)


def test_a_log_ratio_that_is_not_finite_cannot_be_said_and_one_prompt_has_no_error():
    answers = {
        "base": answers_of([1], [3]),
        "ours 0": answers_of([2], [5], ratio=float("inf")),
    }
    figures = answer_figures(gathered(answers), answers)
    assert [(row.log_ratio, row.log_ratio_error) for row in figures.rows] == [
        (0, None),
        (None,) * 2,
    ]
    assert figures.rows[1].adjusted == {"u": None}


def test_a_tenth_is_not_warned_of_and_theta_0_is():
    few = answers_of([0] * 10, [3] * 10, finished=0.9)
    answers = {"base": few, "ours 0": few}
    assert answer_warnings(gathered(answers), answer_figures(gathered(answers), answers)) == []
    answers["base"] = answers_of([0] * 10, [3] * 10, finished=0.8)
    (line,) = answer_warnings(gathered(answers), answer_figures(gathered(answers), answers))
    assert line.startswith("theta_0: 20 % of the answers did not end")
