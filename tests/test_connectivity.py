"""Connectivity along the edges between policies, and the bands that it is judged by."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.report.statistics import bands
from vcsoup_dist.report.statistics.bands import simultaneous_band
from vcsoup_dist.report.statistics.connectivity import (
    curvature_of,
    drop_of,
    drops_below_line,
    find_edges,
    second_differences,
)
from vcsoup_dist.report.statistics.evaluated import Evaluated

NUMBERS = st.floats(-1e3, 1e3, allow_subnormal=False)


@st.composite
def all_positions(draw) -> np.ndarray:
    """From 0 to 1, at uneven steps."""
    steps = draw(st.lists(st.floats(0.01, 1), min_size=2, max_size=8))
    at = np.cumsum([0, *steps]) / math.fsum(steps)
    at[-1] = 1
    return at


@given(all_positions(), NUMBERS, NUMBERS, NUMBERS)
def test_of_a_parabola_the_drop_and_the_second_difference_are_known(at, a, b, c):
    rewards = a * at**2 + b * at + c
    size = 1 + abs(a) + abs(b) + abs(c)
    drops = drops_below_line(at) @ rewards
    np.testing.assert_allclose(drops, (a * at * (1 - at))[1:-1], atol=1e-12 * size)
    curvatures = second_differences(at) @ rewards
    np.testing.assert_allclose(curvatures, 2 * a, atol=1e-8 * size)


@given(all_positions(), st.data())
def test_a_drop_is_the_straight_line_less_the_reward_whatever_is_added_to_both(at, data):
    rewards = np.array(data.draw(st.lists(NUMBERS, min_size=len(at), max_size=len(at))))
    line = np.interp(at, [0, 1], [rewards[0], rewards[-1]])
    drops = drops_below_line(at) @ rewards
    np.testing.assert_allclose(drops, (line - rewards)[1:-1], atol=1e-9)
    for rows in (drops_below_line(at), second_differences(at)):
        np.testing.assert_allclose(rows @ (7 - 3 * at), 0, atol=1e-8)


@pytest.mark.parametrize(
    "positions", [[0.1, 0.5, 1], [0, 0.9], [0, 1], [0, 0.5, 0.5, 1], [0, 1, 2]]
)
def test_a_line_must_lead_from_one_policy_to_the_other(positions):
    for rows in (drops_below_line, second_differences):
        with pytest.raises(ValueError, match="positions"):
            rows(positions)


def test_the_band_of_one_mean_is_its_interval():
    values = np.random.default_rng(0).normal(3, 2, size=(1, 1, 400))
    band = simultaneous_band(values, 2000, 0.95, 0)
    error = values.std(ddof=1) / 20
    assert band.mean[0] == values.mean()
    assert (band.high - band.low)[0] == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_the_band_holds_all_means_together():
    """Whether a band of 90 % holds 6 true means at once, for independent and for equal ones."""
    draw = np.random.default_rng(1)
    for shared in (0.0, 1.0):
        hits = 0
        for trial in range(250):
            common = draw.normal(size=(1, 1, 50))
            values = shared * common + (1 - shared) * draw.normal(size=(1, 6, 50))
            band = simultaneous_band(values * [[[1], [2], [3], [4], [5], [6]]], 200, 0.9, trial)
            hits += bool((band.low <= 0).all() and (band.high >= 0).all())
        # Binomial(250, 0.9) has a standard deviation of 1.9 %.
        assert 0.84 <= hits / 250 <= 0.96, shared


def test_seeds_widen_the_band_and_few_of_them_more():
    draw = np.random.default_rng(2)
    of_prompts = draw.normal(size=(1, 3, 200))

    def width(seeds: int, spread: float) -> float:
        values = of_prompts + spread * draw.normal(size=(seeds, 3, 1))
        band = simultaneous_band(values, 500, 0.95, 0)
        return float((band.high - band.low).mean())

    alone = width(1, 0)
    assert width(20, 0) == pytest.approx(alone, rel=0.05)
    assert width(20, 2) > 3 * alone
    assert width(2, 2) > 5 * width(20, 2)


def test_few_numbers_have_students_quantiles():
    assert bands._largest_t(None, 1, 0.95) == pytest.approx(1.960, rel=0.02)
    assert bands._largest_t(15, 1, 0.95) == pytest.approx(2.131, rel=0.02)
    assert bands._largest_t(2, 1, 0.95) == pytest.approx(4.303, rel=0.04)
    # The largest of 4 is below x where each is: at the level 0.95^(1/4).
    assert bands._largest_t(None, 4, 0.95) == pytest.approx(2.491, rel=0.02)


def test_memory_does_not_grow_with_the_prompts(monkeypatch):
    values = np.random.default_rng(0).normal(size=(2, 3, 100))
    whole = simultaneous_band(values, 103, 0.9, 0)
    monkeypatch.setattr(bands, "CHUNK", 1000)
    cut = simultaneous_band(values, 103, 0.9, 0)
    np.testing.assert_allclose(cut.mean, whole.mean)
    assert np.all(cut.low < cut.mean) and np.all(cut.high > cut.mean)


@pytest.mark.parametrize(
    "samples",
    [np.zeros((1, 2, 1)), np.zeros((0, 2, 3)), np.zeros((2, 3)), np.full((1, 1, 2), np.nan)],
)
def test_samples_without_a_band_are_refused(samples):
    with pytest.raises(ValueError, match="samples must be"):
        simultaneous_band(samples, 100, 0.95, 0)


POSITIONS = np.array([0, 0.25, 0.5, 0.75, 1])


def along(draw, seeds: int, prompts: int, dent: float = 0.0, of_seeds: float = 0.0) -> np.ndarray:
    """Rewards [S, 5, P] on a straight line from 1 to 0, but for noise and a dent in the middle:
    prompts are hard or easy, answers differ, and each seed's curve has a shape of its own."""
    line = (1 - POSITIONS)[None, :, None] - dent * (POSITIONS == 0.5)[None, :, None]
    of_prompts = draw.normal(size=(1, 1, prompts))
    shape = of_seeds * draw.normal(size=(seeds, 5, 1))
    return line + of_prompts + shape + draw.exponential(size=(seeds, 5, prompts)) - 1


@pytest.mark.parametrize("seeds, of_seeds", [(1, 0.0), (3, 0.5), (10, 0.5)])
def test_noise_is_called_a_barrier_in_at_most_one_of_twenty_edges(seeds, of_seeds):
    draw = np.random.default_rng(3)
    edges = [along(draw, seeds, 48, of_seeds=of_seeds) for _ in range(600)]
    found = [drop_of(POSITIONS, each, 200, 0.95) for each in edges]
    assert np.mean([max(drop.mean) > 0 for drop in found]) > 0.7  # what a largest drop says
    assert np.mean([drop.is_barrier for drop in found]) <= 0.05


def test_a_dent_is_a_barrier_at_its_place():
    draw = np.random.default_rng(4)
    found = [drop_of(POSITIONS, along(draw, 1, 64, dent=1.0), 200, 0.95) for _ in range(50)]
    assert np.mean([drop.is_barrier and drop.worst == 1 for drop in found]) > 0.95
    errors = [drop.mean[1] - 1.0 for drop in found]
    assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(50)


def test_the_interval_of_the_curvature_holds_it():
    """0.5 t (1 - t) has the second derivative -1 everywhere."""
    draw = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        rewards = 0.5 * (POSITIONS * (1 - POSITIONS))[None, :, None]
        rewards = rewards + 0.2 * draw.normal(size=(1, 5, 60))
        found = curvature_of(POSITIONS, rewards, 200, 0.95)
        hits += found.low <= 1 <= found.high
        assert found.low <= abs(found.value) <= found.high
    assert hits / 200 > 0.9
    straight = np.broadcast_to(POSITIONS[None, :, None], (1, 5, 4))
    assert curvature_of(POSITIONS, straight, 100, 0.95).high < 1e-12


def test_rewards_on_the_straight_line_but_for_rounding_have_no_barrier():
    positions = np.linspace(0, 1, 11)
    rewards = np.nextafter(0.3 + 0.1 * positions, -1)
    rewards[[0, -1]] = 0.3, 0.4
    drop = drop_of(positions, np.repeat(rewards[None, :, None], 3, axis=2), 100, 0.95)
    assert not drop.is_barrier and max(drop.mean) < 1e-15


def soup(weights: tuple[float, ...], reward: float, seed: int = 0, method: str = "m") -> Evaluated:
    lam = dict(zip("abc", weights, strict=True))
    return Evaluated(f"{weights}", method, seed, lam, {"r": np.array([reward - 1, reward + 1])})


def test_only_soups_of_two_policies_with_both_ends_make_an_edge():
    lambdas = [(1, 0, 0), (0, 1, 0), (0.75, 0.25, 0), (0.5, 0, 0.5), (0.2, 0.3, 0.5), (0.5, 0.5, 0)]
    base = Evaluated("base", None, None, None, {"r": np.zeros(2)})
    soups = [base, *(soup(row, float(i)) for i, row in enumerate(lambdas))]
    (edge,) = find_edges(soups, "abc", 100, 0.95)  # policy c alone was not evaluated
    assert (edge.method, edge.start, edge.end, edge.seeds) == ("m", "a", "b", (0,))
    assert edge.positions == (0, 0.25, 0.5, 1)
    assert edge.rewards == {"r": (0.0, 2.0, 5.0, 1.0)}
    assert edge.line == {"r": (0.0, 0.25, 0.5, 1.0)}
    assert edge.drop["r"].mean == (-1.75, -4.5) and edge.barriers == []


def test_policies_that_were_trained_for_a_trade_off_are_on_no_edge():
    rows = [(1, 0, 0), (0.5, 0.5, 0), (0, 1, 0)]
    trained = [replace(soup(row, 0.0), is_soup=False) for row in rows]
    assert find_edges(trained, "abc", 100, 0.95) == []
    assert len(find_edges([*trained, *(soup(row, 0.0, 1) for row in rows)], "abc", 100, 0.95)) == 1


def test_soups_beyond_the_simplex_are_on_no_edge():
    inside = [(1, 0, 0), (0.5, 0.5, 0), (0, 1, 0)]
    box = [(0.5, 0, 0), (0.5, 1, 0), (1, 1, 0), (0.25, 0.25, 0), (-0.5, 1.5, 0), (1.5, -0.5, 0)]
    soups = [soup(row, float(i)) for i, row in enumerate(inside + box)]
    (edge,) = find_edges(soups, "abc", 100, 0.95)
    assert edge.positions == (0, 0.5, 1) and edge.rewards == {"r": (0.0, 1.0, 2.0)}


def test_an_edge_has_the_seeds_that_all_of_its_positions_have():
    rows = [(1, 0, 0), (0.5, 0.5, 0), (0, 1, 0)]
    soups = [soup(row, seed + 10.0 * i, seed) for i, row in enumerate(rows) for seed in (0, 1, 2)]
    (edge,) = find_edges(soups[:-1], "abc", 100, 0.95)
    assert edge.seeds == (0, 1) and edge.rewards == {"r": (0.5, 10.5, 20.5)}
    assert find_edges(soups[:-3], "abc", 100, 0.95) == []
