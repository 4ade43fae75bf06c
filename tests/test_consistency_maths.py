"""Gaps, cosine and rules against what follows from their definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vcsoup_dist.consistency import rules
from vcsoup_dist.consistency.gaps import (
    consistency,
    count_patterns,
    gap_vectors,
    named_patterns,
    norm,
    sign_patterns,
    swap_by_own,
)
from vcsoup_dist.moments import moments

numbers = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)
gap_arrays = st.tuples(st.integers(1, 30), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=numbers)
)
small_gaps = st.tuples(st.integers(1, 12), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]))
)


@given(gap_arrays)
def test_cosine_is_that_of_plain_arithmetic(gaps):
    for g, c, length in zip(gaps, consistency(gaps), norm(gaps), strict=True):
        expected_length = math.sqrt(math.fsum(x * x for x in g))
        assert math.isclose(length, expected_length, rel_tol=1e-12)
        if expected_length == 0:
            assert math.isnan(c)
        else:
            expected = math.fsum(g) / (math.sqrt(len(g)) * expected_length)
            assert math.isclose(c, expected, abs_tol=1e-9) and -1 <= c <= 1


whole_gaps = st.tuples(st.integers(1, 30), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(-5, 5))
)


@given(whole_gaps, st.sampled_from([1.0, 0.1, 1 / 3, 7e-200]), st.data())
@example(np.array([[1, 2, -3], [1, -2, 1], [3, -2, -1]]), 0.1, None)
@example(np.array([[1, 0], [0, -1], [2, 2], [-1, 1], [-3, -3]]), 1.0, None)
def test_thresholds_decide_as_exact_arithmetic_does_at_their_very_edge(whole, unit, draw):
    n = whole.shape[1]
    if draw is not None:
        whole = whole[:, draw.draw(st.permutations(range(n)))]
    cosines = consistency(whole * unit)
    everything = np.ones(len(whole), dtype=bool)
    for square in (0, Fraction(1, n), Fraction(n - 1, n), Fraction(1, 4), 1):
        expected = []
        for total, length in zip(
            whole.sum(axis=1).tolist(), np.square(whole).sum(axis=1).tolist(), strict=True
        ):
            expected.append(length > 0 and total >= 0 and total**2 >= square * n * length)
        kept = rules.by_threshold(cosines, everything, math.sqrt(square))
        assert kept.tolist() == expected


@given(gap_arrays, st.data())
def test_the_order_of_the_values_changes_no_bit(gaps, data):
    other = gaps[:, data.draw(st.permutations(range(gaps.shape[1])))]
    for layout in (np.ascontiguousarray, np.asfortranarray):
        np.testing.assert_array_equal(consistency(layout(other)), consistency(gaps))
        np.testing.assert_array_equal(norm(layout(other)), norm(gaps))


@given(whole_gaps, st.integers(1, 9))
def test_gaps_of_one_direction_have_one_cosine(whole, times):
    np.testing.assert_array_equal(consistency(whole * 1.0), consistency(whole * float(times)))


@given(gap_arrays)
def test_at_sqrt_n_minus_1_over_n_no_gap_is_negative_but_by_rounding(gaps):
    n = gaps.shape[1]
    everything = np.ones(len(gaps), dtype=bool)
    kept = gaps[rules.by_threshold(consistency(gaps), everything, math.sqrt((n - 1) / n))]
    assert (kept >= -1e-11 * np.abs(kept).max(axis=1, keepdims=True, initial=0)).all()


@given(gap_arrays)
def test_1_over_sqrt_n_loses_no_pair_whose_gaps_are_all_positive(gaps):
    positive = np.where(gaps == 0, 1.0, np.abs(gaps))
    everything = np.ones(len(gaps), dtype=bool)
    threshold = 1 / math.sqrt(gaps.shape[1])
    assert rules.by_threshold(consistency(positive), everything, threshold).all()


def test_the_bounds_of_the_cosine_are_tight():
    for n in (2, 3, 4):
        just_negative = np.array([[1.0] * (n - 1) + [-1e-3]])
        assert consistency(just_negative)[0] == pytest.approx(math.sqrt((n - 1) / n), abs=1e-3)
        hardly_positive = np.array([[1.0] + [1e-6] * (n - 1)])
        assert consistency(hardly_positive)[0] == pytest.approx(1 / math.sqrt(n), abs=1e-5)


@given(gap_arrays, st.integers(-900, 900))
def test_cosine_does_not_see_magnitude_however_small_or_large(gaps, exponent):
    scaled = gaps * 2.0**exponent
    np.testing.assert_allclose(consistency(scaled), consistency(gaps), rtol=0, atol=1e-12)
    np.testing.assert_allclose(consistency(-gaps), -consistency(gaps), rtol=0, atol=1e-12)


@given(st.integers(0, 2**32), st.integers(8, 30), st.integers(1, 4), st.floats(0.01, 100),
       st.booleans(), st.floats(0.01, 100), st.floats(-10, 10))  # fmt: skip
def test_normalised_gaps_depend_neither_on_a_rewards_unit_nor_on_its_zero(
    seed, pairs, values, spread, of_gaps, unit, zero
):
    sides = spread * np.random.default_rng(seed).standard_normal((2, pairs, values))
    moved = unit * sides + zero
    found = []
    for chosen, rejected in (sides, moved):
        of = chosen - rejected if of_gaps else np.concatenate([chosen, rejected])
        pooled = moments(np.concatenate([chosen, rejected])).std()
        found.append(gap_vectors(chosen, rejected, moments(of).std(), pooled))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


@given(small_gaps, st.data())
def test_pairs_are_swapped_where_their_own_value_prefers_the_other_answer(gaps, draw):
    own = draw.draw(st.integers(0, gaps.shape[1] - 1))
    gaps[0, -1] = np.nan
    found, swapped = swap_by_own(gaps, own)
    for before, after, was_swapped in zip(gaps, found, swapped, strict=True):
        if np.isnan(before).any():
            assert not was_swapped
        else:
            assert was_swapped == (before[own] < 0) and after[own] == abs(before[own])
            assert after.tolist() == [-x if was_swapped else x for x in before]
            assert not np.signbit(after[after == 0]).any()
    unchanged, nothing = swap_by_own(gaps, None)
    assert unchanged is gaps and not nothing.any()


@given(small_gaps)
def test_sign_patterns_count_every_pair_once(gaps):
    names = ["".join("+" if x > 0 else "-" if x < 0 else "0" for x in g) for g in gaps]
    counted = named_patterns(count_patterns(sign_patterns(gaps)), gaps.shape[1])
    assert counted == {name: names.count(name) for name in sorted(set(names))}
    assert list(counted) == sorted(counted)


def test_twenty_signs_fit_in_a_pattern():
    ends = np.array([[1.0] * 20, [-1.0] * 20, [np.nan] * 20])
    assert named_patterns(count_patterns(sign_patterns(ends)), 20) == {
        "+" * 20: 1, "-" * 20: 1, "0" * 20: 1
    }  # fmt: skip


@given(small_gaps, st.floats(-1, 1), st.floats(0.01, 1), st.floats(0, 3), st.randoms())
def test_rules_keep_what_brute_force_keeps_in_any_order_of_the_pairs(
    gaps, threshold, ratio, min_norm, draw
):
    ids = np.array([draw.getrandbits(64) for _ in gaps], np.uint64)
    cosines = consistency(gaps)
    eligible = ~np.isnan(cosines) & (norm(gaps) >= min_norm)
    usable = np.flatnonzero(eligible).tolist()

    kept = rules.by_threshold(cosines, eligible, threshold)
    assert np.flatnonzero(kept).tolist() == [i for i in usable if cosines[i] >= threshold - 1e-12]

    kept = rules.all_positive(sign_patterns(gaps), eligible, gaps.shape[1])
    assert np.flatnonzero(kept).tolist() == [i for i in usable if all(x > 0 for x in gaps[i])]

    kept = rules.best_share(cosines, ids, eligible, ratio)
    ranked = sorted(usable, key=lambda i: (-cosines[i], ids[i]))
    count = min(len(usable), max(1, math.floor(ratio * len(usable) + 0.5)))
    assert sorted(np.flatnonzero(kept)) == sorted(ranked[:count])

    drawn = rules.random_subset(ids, eligible, count)
    assert drawn.sum() == count and not (drawn & ~eligible).any()
    order = draw.sample(range(len(ids)), len(ids))
    again = rules.random_subset(ids[order], eligible[order], count)
    assert set(ids[drawn]) == set(ids[order][again])
    again = rules.best_share(cosines[order], ids[order], eligible[order], ratio)
    assert set(ids[kept]) == set(ids[order][again])


def test_a_random_subset_is_no_prefix_of_the_ids_and_prefers_no_cosine():
    draw = np.random.default_rng(0)
    gaps = draw.standard_normal((4000, 2))
    ids = np.arange(4000, dtype=np.uint64)
    kept = rules.random_subset(ids, np.ones(4000, dtype=bool), 1000)
    assert abs(consistency(gaps)[kept].mean() - consistency(gaps).mean()) < 0.06
    assert 200 < kept[:1000].sum() < 300
