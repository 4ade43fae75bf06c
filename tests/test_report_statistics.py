"""Intervals over crossed prompts and seeds, hypervolumes without their bias, and who is named."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcsoup_dist.errors import UserError
from vcsoup_dist.records.summary import Comparison, Comparisons, Scale, Summary
from vcsoup_dist.report.headline import headline
from vcsoup_dist.report.limits import limits
from vcsoup_dist.report.statistics import fronts
from vcsoup_dist.report.statistics.against_start import against_start, share_interval
from vcsoup_dist.report.statistics.comparisons import compare_all, confidence_of_one
from vcsoup_dist.report.statistics.crossed import mean_errors, resampled_errors
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.report.statistics.hypervolumes import hypervolumes
from vcsoup_dist.report.statistics.students_t import t_quantile, tail
from vcsoup_dist.report.statistics.summarise import summarise
from vcsoup_dist.report.statistics.thinning import nearest
from vcsoup_dist.report.statistics.volumes import Volumes, prompt_shares, volumes_of
from vcsoup_dist.report.tables import as_csv, as_text

LAMBDAS = (0.0, 0.5, 1.0)
ZERO_ONE = Scale(
    {"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, {"a": -0.1, "b": -0.1}, {"a": -0.1, "b": -0.1},
    "p", True,
)  # fmt: skip


def run_of(
    methods: dict[str, float] | None = None,
    *,
    seeds: int | dict[str, int] = 3,
    prompts: int = 16,
    lambdas: tuple[float, ...] | dict[str, tuple[float, ...]] = LAMBDAS,
    deviation: float = 0.0,
    draw: int = 0,
    base: bool = True,
) -> list[Evaluated]:
    """Methods whose rewards are 4 lambda + their number + noise, in both values."""
    rng = np.random.default_rng(draw)
    methods = {"p": 0.0, "q": 0.0} if methods is None else methods
    shared = rng.standard_normal((2, prompts))
    found = []
    if base:
        rewards = dict(zip("ab", shared - 0.5, strict=True))
        found.append(Evaluated("base", None, None, None, rewards))
    for method, shift in methods.items():
        own = lambdas[method] if isinstance(lambdas, dict) else lambdas
        for seed in range(seeds[method] if isinstance(seeds, dict) else seeds):
            moved = deviation * rng.standard_normal(2)
            for lam in own:
                noise = 0.7 * rng.standard_normal((2, prompts)) + moved[:, None]
                earned = 4 * np.array([[lam], [1 - lam]]) + shift + shared + noise
                found.append(Evaluated(
                    f"{method}/{seed}/{lam}", method, seed, {"a": lam, "b": 1 - lam},
                    dict(zip("ab", earned, strict=True)),
                ))  # fmt: skip
    return found


def summary_of(evaluated: list[Evaluated], resamples: int = 100) -> Summary:
    return summarise(evaluated, resamples=resamples, confidence=0.95)


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [  # tables of Student's t
        (0.975, 1, 12.7062047), (0.975, 2, 4.3026527), (0.975, 10, 2.2281389), (0.95, 5, 2.0150484),
        (0.995, 3, 5.8409093), (0.975, 100, 1.9839715), (0.975, 120, 1.9799304),
        (0.975, 1e9, 1.9599640), (0.5, 4, 0.0),
    ],
)  # fmt: skip
def test_quantiles_of_students_t(probability, freedom, expected):
    assert float(t_quantile(probability, freedom)) == pytest.approx(expected, abs=1e-6)


def test_quantiles_of_students_t_fall_with_the_degrees_of_freedom():
    found = t_quantile(0.975, np.linspace(1, 300, 500))
    assert (np.diff(found) < 0).all() and found.shape == (500,)
    for probability, freedom in [(0.4, 3), (1.0, 3), (0.975, 0.5), (0.975, math.nan)]:
        with pytest.raises(ValueError, match="no quantile"):
            t_quantile(probability, freedom)


@given(st.integers(1, 4), st.integers(0, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_many_hypervolumes_are_those_of_each_set(values, count, seed):
    draw = np.random.default_rng(seed)
    points = draw.integers(-3, 4, size=(3, 2, count, values)).astype(float)
    reference = draw.integers(-3, 1, size=values).astype(float)
    found = hypervolumes(points, reference)
    for index in np.ndindex(3, 2):
        expected = fronts.hypervolume(points[index], reference) if count else 0.0
        assert found[index] == pytest.approx(expected, abs=1e-9)


def test_one_seeds_interval_is_students_t_over_prompts():
    samples = np.random.default_rng(3).exponential(size=(1, 9))
    width = float(mean_errors([samples]).half_width(0.95))
    assert width == pytest.approx(2.3060041 * samples.std(ddof=1) / 3, rel=1e-6)


def test_seeds_that_differ_alike_on_every_prompt_give_students_t_over_seeds():
    samples = np.array([[1.0], [2.0], [6.0]]) + np.zeros((3, 5))
    errors = mean_errors([samples])
    assert float(errors.prompts) == 0
    deviation = samples[:, 0].std(ddof=1)
    expected = 4.3026527 * deviation / math.sqrt(3)
    assert float(errors.half_width(0.95)) == pytest.approx(expected, rel=1e-6)


def test_answers_are_not_counted_twice_where_seeds_do_not_differ():
    """In the mean: of a plain bootstrap of both, the answers' variance would count three times."""
    draw = np.random.default_rng(0)
    found = [mean_errors([draw.standard_normal((3, 20))]) for _ in range(2000)]
    untruncated = [
        float(e.prompts + e.of_seeds[0].between - e.of_seeds[0].by_prompts) for e in found
    ]
    assert np.mean(untruncated) == pytest.approx(1 / 60, rel=0.05)


def test_a_difference_does_not_see_what_prompts_do_to_both():
    draw = np.random.default_rng(1)
    hard = 100 * draw.standard_normal(30)
    first, second = draw.standard_normal((2, 2, 30))
    alone = mean_errors([first, -second])
    shared = mean_errors([first + hard, -(second + hard)])
    assert float(shared.half_width(0.95)) == pytest.approx(float(alone.half_width(0.95)))


def test_resampled_errors_of_means_are_those_of_the_formula():
    draw = np.random.default_rng(2)
    samples = draw.standard_normal((4, 40)) + draw.standard_normal(40) + [[0], [1], [0], [2]]
    shares = prompt_shares(40, 20_000, 0)
    by_formula = mean_errors([samples])
    drawn = resampled_errors([samples @ shares], [samples.mean(axis=1)], 40)
    assert float(drawn.prompts) == pytest.approx(float(by_formula.prompts), rel=0.05)
    assert float(drawn.half_width(0.9)) == pytest.approx(
        float(by_formula.half_width(0.9)), rel=0.03
    )


def test_intervals_of_means_hold_about_as_often_as_they_say():
    draw = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        samples = (draw.standard_normal(16) + draw.standard_normal((3, 1)) * 0.3
                   + draw.standard_normal((3, 16)) * 0.7)  # fmt: skip
        hits += abs(samples.mean()) <= float(mean_errors([samples]).half_width(0.95))
    assert 0.92 <= hits / 400 <= 0.985  # the whole grid: tools/check_intervals.py


@given(st.integers(0, 10_000), st.floats(-0.5, 1.5), st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_adding_a_candidate_never_lowers_a_hypervolume_nor_moves_the_scale(draw, lam, seed):
    before = run_of(draw=draw, prompts=4)
    rng = np.random.default_rng(draw)
    lam = round(lam, 3) if round(lam, 3) not in LAMBDAS else 0.123
    rewards = {"a": 6 * rng.standard_normal(4), "b": 6 * rng.standard_normal(4)}
    more = Evaluated("more", "q", seed, {"a": lam, "b": 1 - lam}, rewards)
    old, new = summary_of(before), summary_of([*before, more])
    assert new.scale == old.scale
    for one, other in zip(old.methods, new.methods, strict=True):
        assert other.hypervolume >= one.hypervolume - 1e-12
        for of_seed, volume in one.hypervolume_by_seed.items():
            assert other.hypervolume_by_seed[of_seed] >= volume - 1e-12


def test_the_scale_is_of_theta_0_and_the_policies_of_the_first_method_that_has_all():
    lambdas = {"modpo": (0.1, 0.5), "p": LAMBDAS, "q": LAMBDAS}
    evaluated = run_of({"modpo": 9.0, "p": 0.0, "q": 5.0}, lambdas=lambdas)
    scale = summary_of(evaluated).scale
    assert (scale.method, scale.policies_only) == ("p", True)
    spans = [one for one in evaluated if one.method is None or one.policy and one.method == "p"]
    assert len(spans) == 7
    for value in "ab":
        means = [one.mean(value) for one in spans]
        assert (scale.low[value], scale.high[value]) == (min(means), max(means))
    without = summary_of(run_of({"modpo": 0.0}, lambdas=(0.1, 0.5))).scale
    assert (without.method, without.policies_only) == ("modpo", False)


def test_a_hypervolume_is_told_with_what_noise_adds_to_a_maximum():
    """Forty candidates that are equal but for their answers, whose true hypervolume is 0.6^2."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(20):
        rewards = 0.5 + 0.5 * draw.standard_normal((40, 2, 16))
        found.append(volumes_of([rewards], prompt_shares(16, 200, number), ZERO_ONE))
    measured = np.mean([each.measured.mean() for each in found])
    corrected = np.mean([each.corrected for each in found])
    assert measured > 0.36 + 0.1
    assert abs(corrected - 0.36) < 0.6 * (measured - 0.36)


def test_no_hypervolume_is_below_0_however_large_its_bias():
    noise = Volumes(np.array([0.2]), np.array([[0.9, 1.1, 1.0, 0.8]]), 4)
    assert noise.corrected == pytest.approx(-0.55)  # as differences use it
    low, high = noise.interval(0.95)
    assert noise.shown == low == 0 and high >= 0


def test_candidates_are_thinned_to_the_nearest_weights_whatever_they_earn():
    grid = [[w / 10, 1 - w / 10] for w in range(11)]
    assert nearest([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], grid) == [0, 5, 10]
    assert nearest([[0.1 + 0.2, 0.7]], grid) == [3]  # which differs in its last bit
    assert nearest([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]], grid) == [5, 4, 6]
    with pytest.raises(ValueError, match="cannot be thinned"):
        nearest(grid, [[0.0, 1.0]])


def test_methods_are_compared_at_as_many_candidates_as_the_one_with_the_fewest():
    fine = tuple((np.arange(21) / 20).tolist())
    evaluated = run_of({"p": 0.0, "q": 0.0}, lambdas={"p": fine, "q": (0.0, 0.5, 1.0)}, seeds=2)
    compared = summary_of(evaluated).comparisons
    assert (compared.candidates, compared.like) == (3, "q")
    same = [one for one in evaluated if one.weights is None or one.weights["a"] in (0, 0.5, 1)]
    assert replace(compared, like="p") == summary_of(same).comparisons
    whole = {m.method: m.corrected for m in summary_of(same).methods}
    assert compared.hypervolumes == whole


def equal_volumes(count: int, draw: int = 0, resamples: int = 4000) -> dict[str, Volumes]:
    """Methods with independent errors of the same size."""
    drawn = np.random.default_rng(draw).standard_normal((count, 1, resamples))
    return {f"m{i}": Volumes(np.zeros(1), each, 10_000) for i, each in enumerate(drawn)}


@pytest.mark.parametrize(("count", "studentised"), [(2, 2.772), (3, 3.314), (4, 3.633), (6, 4.030)])
def test_all_pairs_together_have_tukeys_quantile(count, studentised):
    """Tables of the studentised range with infinite degrees of freedom, 95 %."""
    volumes = equal_volumes(count)
    of_one = confidence_of_one(volumes, list(itertools.combinations(volumes, 2)), 0.95)
    assert (1 - of_one) / 2 == pytest.approx(tail(studentised / math.sqrt(2)), rel=0.12)


def test_two_names_of_one_model_are_never_told_apart():
    one = equal_volumes(1)["m0"]
    pairs = compare_all({"x": one, "y": one, "z": equal_volumes(1, 1)["m0"]}, 0.95)
    assert [(p.first, p.second) for p in pairs if p.difference == 0 and not p.differs][0] == (
        "x",
        "y",
    )


def test_four_equal_methods_rarely_have_a_winner():
    named = 0
    for draw in range(60):
        evaluated = run_of(dict.fromkeys("pqrs", 0.0), draw=draw, deviation=0.5)
        named += "largest hypervolume" in " ".join(headline(summary_of(evaluated)))
    assert named <= 3  # of 60; 1,000 draws of each kind: tools/check_intervals.py


def test_a_method_that_is_ahead_of_all_others_is_named_with_its_differences():
    text = " ".join(headline(summary_of(run_of({"p": 0.0, "q": 4.0, "r": 0.5}, seeds=8))))
    assert text.startswith("q has the largest hypervolume, ahead of r by ")
    assert " and p by " in text and "3 pairs are compared at 3 candidates each" in text
    assert "all intervals hold together with 95 %." in text


def test_with_one_seed_policies_are_ahead_and_no_method():
    text = headline(summary_of(run_of({"p": 0.0, "q": 4.0}, seeds=1)))
    assert text[0].startswith("Of these policies, q's have the largest hypervolume, ahead of p by ")
    assert "one seed says nothing of another training run" in text[1]


def said(comparisons: Comparisons | None, seeds: int = 8, **changes: object) -> str:
    base = summary_of(run_of({"p": 0.0, "q": 0.0, "r": 0.0}, seeds=seeds, prompts=4))
    return " ".join(headline(replace(base, comparisons=comparisons, **changes)))


def test_methods_that_cannot_be_told_apart_are_named_together():
    pairs = (Comparison("q", "p", 0.01, -0.25, 0.27), Comparison("q", "r", 0.5, 0.1, 0.9),
             Comparison("p", "r", 0.49, 0.1, 0.9))  # fmt: skip
    text = said(Comparisons(11, "p", {"q": 0.9, "p": 0.89, "r": 0.4}, pairs), seeds=1)
    assert text.startswith(
        "q and p cannot be told apart by hypervolume: q leads by 0.010 [−0.250, 0.270]. "
        "q is ahead of r by 0.500 [0.100, 0.900]. 3 pairs are compared at 11 candidates each; "
        "all intervals hold together with 95 %; one seed says nothing of another training run."
    )


def test_balanced_says_where_it_is_below_theta_0():
    below = SimpleNamespace(difference=-2.0, low=-3.0, high=-1.0)
    above = SimpleNamespace(difference=2.0, low=1.0, high=3.0)
    summary = summary_of(run_of())
    text = headline(replace(summary, balanced_against_start={"a": above, "b": below}))[-1]
    assert text.startswith("The balanced soup is ") and "do not count the choice" in text
    assert ": above by 2.00 [1.00, 3.00])" in text and ": below by 2.00 [1.00, 3.00])" in text
    even = SimpleNamespace(difference=0.5, low=-1.0, high=2.0)
    text = headline(replace(summary, balanced_against_start={"a": even, "b": above}))[-1]
    assert "cannot be told apart, difference 0.50 [−1.00, 2.00])" in text


def test_balanced_is_compared_with_theta_0_on_all_values_together():
    summary = summary_of(run_of())
    row = summary.rows[summary.balanced]
    for value, gain in summary.balanced_against_start.items():
        own = row.cells[value].against_start
        assert gain.difference == own.difference
        assert gain.low < own.low < own.high < gain.high  # Bonferroni's, of two values


def test_ties_are_half_a_win():
    gains = against_start(np.array([[1.0, 2.0, 3.0, 0.0]]), np.array([1.0, 1.0, 4.0, -1.0]), 0.95)
    assert gains.win_rate == 2.5 / 4 and gains.difference == 0.25


def test_a_win_rate_of_independent_prompts_has_wilsons_interval():
    wins = np.array([[1.0] * 300 + [0.0] * 100])
    low, high = share_interval(wins, 0.95)
    assert (low, high) == (pytest.approx(0.7053, abs=1e-3), pytest.approx(0.7899, abs=1e-3))


def test_nothing_but_wins_is_not_certainty():
    low, high = share_interval(np.ones((2, 20)), 0.95)
    assert high == 1 and 0.75 < low < 0.9


def test_one_prompt_has_figures_and_no_intervals():
    summary = summary_of(run_of(prompts=1))
    assert all(cell.low is cell.high is None for row in summary.rows for cell in row.cells.values())
    assert all(m.hypervolume_low is None for m in summary.methods)
    assert not any(pair.differs for pair in summary.comparisons.pairs)
    assert "cannot be told apart" in headline(summary)[0]
    assert "One prompt was answered" in " ".join(limits(summary, ["p", "q"]))
    assert len(as_csv(summary).splitlines()) == len(as_text(summary).splitlines()) == 8


def test_few_and_unequal_seeds_and_absent_methods_are_said():
    def said_of(seeds: dict[str, int]) -> str:
        return " ".join(limits(summary_of(run_of(dict.fromkeys(seeds, 0.0), seeds=seeds)), "pqz"))

    one = said_of({"p": 1, "q": 3})
    assert "There is one seed of p." in one and "Few seeds make a weak claim: q (3)." in one
    assert "unequal numbers of seeds" in one and "No candidate of z was evaluated" in one
    assert "too narrow for the methods" in one and "intervals wide." not in one
    assert "fewer makes the intervals wide." in said_of({"p": 2, "q": 3})
    assert "With two seeds" in said_of({"p": 2}) and "4 prompts are few" in " ".join(
        limits(summary_of(run_of(seeds=8, prompts=4)), ["p"])
    )
    enough = summary_of(run_of(seeds=8))
    assert limits(enough, ["p", "q"]) == []


def test_unequal_seeds_and_candidates_are_compared():
    evaluated = run_of({"p": 0.0, "q": 3.0}, seeds={"p": 1, "q": 3})
    evaluated = [one for one in evaluated if one.name != "q/1/0.5"]
    summary = summary_of(evaluated)
    assert summary.comparisons.candidates == 2
    assert {m.method: len(m.hypervolume_by_seed) for m in summary.methods} == {"p": 1, "q": 3}


def test_a_reward_that_is_not_a_number_is_one_line():
    evaluated = run_of()
    evaluated[3].rewards["b"][5] = math.nan
    with pytest.raises(UserError, match=r"p/0/1.0: the reward of `b` is nan for prompt number 6"):
        summary_of(evaluated)


def test_nothing_but_theta_0_is_said():
    summary = summary_of(run_of({}))
    assert summary.comparisons is None and summary.scale.method is None
    assert headline(summary)[0] == "No soup was evaluated, only θ₀."


def test_without_theta_0_nothing_is_said_against_it():
    summary = summary_of(run_of(base=False))
    assert summary.balanced_against_start == {}
    cells = itertools.chain.from_iterable(row.cells.values() for row in summary.rows)
    assert all(cell.against_start is None for cell in cells)
