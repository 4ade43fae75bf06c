"""Fronts, intervals and the summary against independent oracles."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vcsoup_dist.errors import UserError
from vcsoup_dist.records.summary import Curvature, Drop, Summary
from vcsoup_dist.report.plots.front_panel import short_name
from vcsoup_dist.report.statistics import fronts
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.report.statistics.summarise import summarise
from vcsoup_dist.report.tables import as_csv

# Few distinct numbers, so that ties and duplicates are common.
SMALL = st.integers(-3, 3).map(float)
FLOATS = st.floats(-1e3, 1e3, allow_subnormal=False)


ONE_TO_FOUR = st.integers(1, 4)


def point_sets(numbers=SMALL, values=ONE_TO_FOUR, most=12):
    shapes = st.tuples(st.integers(1, most), values)
    return shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=numbers))


def dominates(p, q) -> bool:
    return all(a >= b for a, b in zip(p, q, strict=True)) and any(
        a > b for a, b in zip(p, q, strict=True)
    )


def box_volume(corner, reference) -> float:
    return math.prod(max(0.0, a - b) for a, b in zip(corner, reference, strict=True))


def volume_by_inclusion_exclusion(points, reference) -> float:
    """|union of boxes| = sum over non-empty subsets of (-1)^(k+1) |intersection|."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in itertools.combinations(points, size):
            total += (-1) ** (size + 1) * box_volume(np.min(subset, axis=0), reference)
    return total


def volume_by_sweep(points, reference) -> float:
    """Two values: strips from right to left, each as high as the best point seen so far."""
    total, height = 0.0, reference[1]
    inside = [p for p in points if p[0] > reference[0] and p[1] > reference[1]]
    for x, y in sorted(inside, reverse=True):
        total += (x - reference[0]) * max(0.0, y - height)
        height = max(height, y)
    return total


@given(point_sets() | point_sets(FLOATS))
def test_the_front_is_exactly_the_points_that_no_other_dominates(points):
    expected = [not any(dominates(p, q) for p in points) for q in points]
    assert fronts.nondominated(points).tolist() == expected


@given(point_sets(), st.data())
def test_the_front_can_minimise_single_values(points, data):
    n = points.shape[1]
    maximised = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    flipped = np.where(maximised, points, -points)
    np.testing.assert_array_equal(
        fronts.nondominated(points, maximised), fronts.nondominated(flipped, True)
    )


def test_all_copies_of_a_front_point_are_kept():
    points = [[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    assert fronts.nondominated(points).tolist() == [True, True, True, False, False]


@given(point_sets(values=st.integers(1, 3), most=6), st.integers(-3, 1))
def test_hypervolume_equals_inclusion_exclusion(points, level):
    reference = np.full(points.shape[1], float(level))
    expected = volume_by_inclusion_exclusion(points, reference)
    assert fronts.hypervolume(points, reference) == pytest.approx(expected, abs=1e-9)


@given(point_sets(FLOATS, st.just(2), most=20))
def test_hypervolume_of_two_values_equals_a_sweep(points):
    reference = fronts.reference_point(points)
    expected = volume_by_sweep(points.tolist(), reference.tolist())
    assert fronts.hypervolume(points, reference) == pytest.approx(expected, rel=1e-9)


@given(point_sets(FLOATS))
def test_every_point_is_better_than_the_reference_point_by_a_tenth_of_the_range(points):
    reference = fronts.reference_point(points)
    assert (points > reference).all()
    for column, level in zip(points.T.tolist(), reference.tolist(), strict=True):
        worst, best = min(column), max(column)
        rounding = 1e-12 * max(abs(worst), abs(best))
        span = best - worst if best - worst > rounding else 1.0
        assert worst - level == pytest.approx(0.1 * span, rel=1e-2)


def test_rounding_is_no_difference_between_soups():
    points = np.array([[0.3, 1.0], [0.1 + 0.2, 0.0]])  # the first value differs in its last bit
    assert points[0, 0] != points[1, 0]
    normalised = fronts.normalise(points, *fronts.bounds(points))
    assert normalised.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    assert fronts.reference_point(points)[0] == pytest.approx(0.2)


@given(point_sets(FLOATS.map(lambda x: round(x, 3))))
def test_normalised_values_span_zero_to_one(points):
    normalised = fronts.normalise(points, *fronts.bounds(points))
    constant = np.ptp(points, axis=0) == 0
    assert (normalised.max(axis=0) == 1).all()
    assert (normalised.min(axis=0) == np.where(constant, 1, 0)).all()
    order = np.argsort(points, axis=0, kind="stable")
    assert (np.diff(np.take_along_axis(normalised, order, axis=0), axis=0) >= 0).all()


@given(point_sets())
def test_the_balanced_point_has_the_largest_minimum_and_lies_on_the_front(points):
    chosen = fronts.balanced(points)
    best = max(min(p) for p in points.tolist())
    ties = [i for i, p in enumerate(points.tolist()) if min(p) == best]
    largest = max(sum(points[i].tolist()) for i in ties)
    assert chosen == next(i for i in ties if sum(points[i].tolist()) == largest)
    assert fronts.nondominated(points)[chosen]


@given(point_sets(), st.data())
def test_the_picked_point_has_the_largest_inner_product_and_lies_on_the_front(points, data):
    n = points.shape[1]
    preference = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(any))
    chosen = fronts.pick(points, preference)
    products = [sum(w * x for w, x in zip(preference, p, strict=True)) for p in points.tolist()]
    assert products[chosen] == max(products)
    assert fronts.nondominated(points)[chosen]


@pytest.mark.parametrize("preference", [[0, 0], [-1, 2], [math.nan, 1], [math.inf, 1]])
def test_a_preference_without_direction_is_refused(preference):
    with pytest.raises(ValueError, match="preference"):
        fronts.pick([[0.0, 1.0]], preference)


def test_mean_inner_product_by_hand():
    # (0.25 * 1 + 0.75 * 0 + 0.5 * 0.5 + 0.5 * 1) / 2
    assert fronts.mean_inner_product([[1, 0], [0.5, 1]], [[0.25, 0.75], [0.5, 0.5]]) == 0.5


@pytest.mark.parametrize("points", [[[math.nan, 1.0]], [[math.inf, 1.0]], [1.0, 2.0]])
def test_malformed_points_are_refused(points):
    for function in (fronts.nondominated, fronts.balanced, fronts.bounds):
        with pytest.raises(ValueError, match="points must be"):
            function(points)


def constant(name, method, seed, weights, helpful, harmless, shift=(0.0, 0.0)):
    """Two prompts whose rewards lie `shift` below and above the mean."""
    return Evaluated(
        name, method, seed, weights,
        {"helpful": np.array([helpful - shift[0], helpful + shift[0]], dtype=np.float32),
         "harmless": np.array([harmless - shift[1], harmless + shift[1]], dtype=np.float32)},
    )  # fmt: skip


def lam(helpful):
    return {"helpful": helpful, "harmless": 1 - helpful}


@pytest.fixture
def by_hand():
    """Method `a` in two seeds, method `b` in one that is dominated everywhere, and theta_0."""
    return [
        constant("base", None, None, None, 0.0, 0.0, (1.0, 0.0)),
        constant("a/1/helpful", "a", 1, lam(1.0), 4.0, 0.0),
        constant("a/0/helpful", "a", 0, lam(1.0), 2.0, 0.0),
        constant("a/0/half", "a", 0, lam(0.5), 2.0, 5.0),
        constant("a/1/half", "a", 1, lam(0.5), 2.0, 5.0),
        constant("a/0/harmless", "a", 0, lam(0.0), 0.0, 10.0),
        constant("a/1/harmless", "a", 1, lam(0.0), 0.0, 10.0),
        constant("b/0/helpful", "b", 0, lam(1.0), 1.0, 0.0),
        constant("b/0/half", "b", 0, lam(0.5), 0.0, 1.0),
        constant("b/0/harmless", "b", 0, lam(0.0), 0.0, 5.0),
    ]


def test_the_summary_of_a_case_made_by_hand(by_hand):
    summary = summarise(by_hand, resamples=200, confidence=0.95)
    assert summary.values == summary.axes == ("helpful", "harmless")
    assert summary.prompts == 2
    named = {(row.method, row.weights and row.weights["helpful"]): row for row in summary.rows}
    assert list(named) == [
        (None, None), ("a", 0.0), ("a", 0.5), ("a", 1.0), ("b", 0.0), ("b", 0.5), ("b", 1.0)
    ]  # fmt: skip

    helpful = named["a", 1.0].cells["helpful"]
    assert named["a", 1.0].seeds == (0, 1)
    assert named["a", 1.0].names == ("a/0/helpful", "a/1/helpful")
    assert (helpful.mean, helpful.scaled) == (3.0, 0.75)
    assert helpful.seed_spread == pytest.approx(math.sqrt(2))
    assert named["b", 1.0].cells["helpful"].seed_spread is None
    base = named[None, None].cells["helpful"]
    # Two prompts: Student's t of one degree of freedom, 12.7, times the standard error, 1.
    assert (base.mean, base.low, base.high) == pytest.approx((0.0, -12.7062, 12.7062), rel=1e-5)

    assert (summary.scale.method, summary.scale.policies_only) == ("a", True)
    assert summary.scale.low == {"helpful": 0.0, "harmless": 0.0}
    assert summary.scale.high == {"helpful": 4.0, "harmless": 10.0}
    assert summary.scale.reference == pytest.approx({"helpful": -0.4, "harmless": -1.0})
    assert summary.scale.reference_scaled == pytest.approx({"helpful": -0.1, "harmless": -0.1})

    front = [key for key, row in named.items() if row.on_front]
    assert front == [("a", 0.0), ("a", 0.5), ("a", 1.0)]
    assert [list(named)[i] for i in summary.front] == front
    own = [key for key, row in named.items() if row.on_method_front]
    assert own == [*front, ("b", 0.0), ("b", 1.0)]
    assert list(named)[summary.balanced] == ("a", 0.5)

    a, b = summary.methods
    # Sweeps above (-0.1, -0.1): seed 0 has (0, 1), (0.5, 0.5), (0.5, 0); seed 1 also (1, 0).
    assert a.hypervolume_by_seed == pytest.approx({0: 0.6 * 0.6 + 0.1 * 0.5, 1: 0.41 + 0.5 * 0.1})
    assert a.hypervolume == pytest.approx(0.435)
    assert a.hypervolume_spread == pytest.approx(0.05 / math.sqrt(2))
    assert a.hypervolume_original == pytest.approx(0.435 * 4 * 10)
    assert b.hypervolume == pytest.approx(0.1 * 0.6 + 0.25 * 0.1)
    assert b.hypervolume_spread is None
    assert list(named)[a.balanced] == ("a", 0.5)
    # helpful 0.75, half (0.5 + 0.5) / 2, harmless 1, over three soups
    assert a.mean_inner_product == pytest.approx((0.75 + 0.5 + 1) / 3)

    edge_a, edge_b = summary.edges
    assert (edge_a.method, edge_a.start, edge_a.end) == ("a", "helpful", "harmless")
    assert edge_a.positions == (0, 0.5, 1)
    assert edge_a.rewards["helpful"] == (3.0, 2.0, 0.0)
    assert edge_a.line["helpful"] == (3.0, 1.5, 0.0)
    assert {value: drop.mean for value, drop in edge_a.drop.items()} == {
        "helpful": (-0.5,), "harmless": (0.0,)
    }  # fmt: skip
    assert edge_b.drop["helpful"] == Drop((0.5,), (0.5,), (0.5,), 0, True)
    assert edge_b.drop["harmless"] == Drop((1.5,), (1.5,), (1.5,), 0, True)
    assert edge_b.curvature["harmless"] == Curvature(12.0, 0.5, 12.0, 12.0)


def test_soups_beyond_the_simplex_are_in_the_volume_and_in_no_inner_product(by_hand):
    plain = summarise(by_hand, resamples=100, confidence=0.95)
    box = {"helpful": 1.0, "harmless": 0.5}
    beyond = [constant("a/0/box", "a", 0, box, 3.0, 6.0), constant("c", "c", 0, box, 1.0, 1.0)]
    summary = summarise([*by_hand, *beyond], resamples=100, confidence=0.95)
    a, _, c = summary.methods
    assert a.mean_inner_product == plain.methods[0].mean_inner_product
    assert c.mean_inner_product is None and summary.edges == plain.edges
    assert a.hypervolume > plain.methods[0].hypervolume
    policies = [row.policy for row in summary.rows if row.method == "a"]
    assert policies == ["harmless", None, "helpful", None]
    assert [short_name(row) for row in summary.rows if row.method == "c"] == ["1/0.5"]


def test_the_order_of_a_methods_evaluations_changes_nothing(by_hand):
    first = summarise(by_hand, resamples=100, confidence=0.9)
    a, b = ([one for one in by_hand if one.method == method] for method in "ab")
    backwards = summarise([*a[::-1], *b[::-1], by_hand[0]], resamples=100, confidence=0.9)
    assert backwards == first


def test_a_value_without_a_policy_is_evaluated_but_has_no_weight():
    soups = [
        Evaluated("base", None, None, None, {"a": np.zeros(3), "b": np.ones(3)}),
        Evaluated("a", "m", 0, {"a": 1.0}, {"a": np.ones(3), "b": np.zeros(3)}),
    ]
    summary = summarise(soups, resamples=100, confidence=0.95)
    assert (summary.values, summary.axes) == (("a", "b"), ("a",))
    assert summary.methods[0].mean_inner_product == 1.0
    assert summary.front == (0, 1) and summary.edges == ()


def test_a_summary_comes_back_from_its_file_and_has_no_nan(by_hand, tmp_path):
    summary = summarise(by_hand, resamples=100, confidence=0.95)
    summary.write(tmp_path)
    assert Summary.read(tmp_path) == summary
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text)["methods"][0]["hypervolume_by_seed"].keys() == {"0", "1"}
    assert "NaN" not in text and "Infinity" not in text


def test_a_summary_of_another_version_is_refused(by_hand, tmp_path):
    summarise(by_hand, resamples=100, confidence=0.95).write(tmp_path)
    file = tmp_path / "summary.json"
    file.write_text(file.read_text().replace('"version": 3', '"version": 0'))
    with pytest.raises(UserError, match="has version 0, and this vcsoup_dist reads version 3"):
        Summary.read(tmp_path)


def test_the_csv_has_one_line_per_row_with_full_numbers(by_hand):
    summary = summarise(by_hand, resamples=100, confidence=0.95)
    lines = list(csv.DictReader(io.StringIO(as_csv(summary))))
    assert len(lines) == len(summary.rows)
    for line, row in zip(lines, summary.rows, strict=True):
        assert line["method"] == (row.method or "")
        assert float(line["helpful_scaled"]) == row.cells["helpful"].scaled
        assert float(line["harmless"]) == row.cells["harmless"].mean
        assert line["weight_helpful"] == (str(row.weights["helpful"]) if row.weights else "")
    assert [line["balanced"] for line in lines].count("1") == 1


def test_a_reward_that_is_not_finite_is_the_users_to_fix(by_hand):
    by_hand[3].rewards["harmless"][1] = np.nan
    with pytest.raises(UserError, match=r"a/0/half: .* `harmless` is nan .* number 2;"):
        summarise(by_hand, resamples=100, confidence=0.95)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (constant("x", "a", 0, lam(0.5), 1, 1), "evaluated before"),
        (constant("x", "a", None, lam(0.4), 1, 1), "come together"),
        (constant("x", "a", 0, {"helpful": 1.0}, 1, 1), "has weights for"),
        (Evaluated("x", "c", 0, lam(0.5), {"helpful": np.zeros(2)}), "has the values"),
        (
            Evaluated("x", "c", 0, lam(0.5), {"helpful": np.zeros(2), "harmless": np.zeros(3)}),
            "has rewards",
        ),
    ],
)
def test_evaluations_that_cannot_be_compared_are_refused(by_hand, broken, message):
    with pytest.raises(ValueError, match=message):
        summarise([*by_hand, broken], resamples=100, confidence=0.95)
