"""The study's part "How conflict matters": its data, its recipe and its numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.report.statistics.evaluated import Evaluated

STUDY = Path(__file__).parents[1] / "tools" / "study"
sys.path.append(str(STUDY))

from conflict_curve import (  # noqa: E402
    LONGEST,
    PAIRS,
    Curve,
    Difference,
    Measured,
    verdicts,
)
from conflict_data import VALUES, conflicts, draw_with_share, own_gap, write_data  # noqa: E402
from conflict_show import figure, markdown  # noqa: E402

METHODS = ("vc_soup", "random", "strict", "random_strict", "rewarded_soup")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_just_the_share_asked_for_conflicts_and_no_pair_comes_twice(value: str, share: float):
    pairs = draw_with_share(value, 240, share, "seed")
    verdicts = [conflicts(pair) for pair in pairs]
    assert (verdicts.count(True), verdicts.count(False)) == (240 * share, 240 - 240 * share)
    assert len({pair.prompt[-1]["content"] for pair in pairs}) == 240
    assert all(own_gap(pair, value) > 0 for pair in pairs)  # no label is wrong
    assert True in verdicts[:40] and False in verdicts[:40]  # in random order


def test_more_pairs_than_the_pool_has_of_a_kind_are_refused():
    with pytest.raises(ValueError, match="1900 conflicting pairs are more than the"):
        draw_with_share("short", 2000, 0.95, "seed")


def test_seed_and_share_decide_the_bytes_of_the_data(tmp_path: Path):
    texts = {}
    for name, share, seed in (("a", 0.5, 0), ("again", 0.5, 0), ("b", 0.5, 1), ("c", 0.7, 0)):
        write_data(tmp_path / name, 20, share, seed)
        texts[name] = [(tmp_path / name / f"{value}_train.jsonl").read_text() for value in VALUES]
    assert texts["a"] == texts.pop("again")
    assert len({tuple(each) for each in texts.values()}) == 3


def test_the_recipe_has_the_values_methods_and_answers_that_are_measured(monkeypatch):
    for name in ("VCSOUP_WORLD", "VCSOUP_DATA", "VCSOUP_HELD_OUT"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("VCSOUP_SEED", "3")
    recipe = load_recipe(STUDY / "conflict.yaml")
    assert (tuple(recipe.values), tuple(recipe.methods)) == (VALUES, METHODS)
    assert recipe.evaluation.max_new_tokens == LONGEST
    assert recipe.seeds == [3]


def answers(share: float, seeds: Sequence[int], prompts: int) -> list[Evaluated]:
    """A front from (0.2, -1) to (0.6, -3) for all methods; `vc_soup` gains share / 2 in `short`."""
    noise = np.random.default_rng(0).normal(0, 0.02, prompts)
    noise -= noise.mean()
    start = {"complete": 0.4 + noise, "short": -2.0 + noise}
    found = [Evaluated("base", None, None, None, start)]
    for method in METHODS:
        gain = share / 2 if method == "vc_soup" else 0.0
        for seed in seeds:
            for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
                rewards = {
                    "complete": 0.2 + 0.4 * weight + noise,
                    "short": -1 - 2 * weight + gain + noise + 0.01 * seed,
                }
                weights = {"complete": weight, "short": 1 - weight}
                name = f"{method}/{seed}/{weight}"
                found.append(Evaluated(name, method, seed, weights, rewards))
    return found


def test_a_curve_has_the_gains_that_are_in_the_answers():
    measured = Measured({share: answers(share, (0, 1, 2), 24) for share in (0.1, 0.5, 0.9)})
    curves = {(each.first, each.second): each for each in measured.curves()}
    assert tuple(curves) == PAIRS
    gain = curves["vc_soup", "rewarded_soup"]
    # share / 2 of 4 units of `short`, over the width of the front: 0.6 of `complete`
    for point in gain.points:
        expected = 0.6 * point.share / 8
        assert point.hypervolume.value == pytest.approx(expected, rel=0.01)  # less its bias
        assert point.hypervolume.low < expected < point.hypervolume.high
        assert point.even_mix["short"].value == pytest.approx(point.share / 2)
        assert point.even_mix["complete"].value == pytest.approx(0)
        assert point.own_scale.value > 0
    assert gain.slope is not None and gain.slope.value == pytest.approx(0.6 / 8, rel=0.01)
    assert gain.strong_conflict is not None
    assert gain.strong_conflict.value == pytest.approx(0.6 * 0.7 / 8, rel=0.01)
    nothing = curves["strict", "random_strict"]
    assert [point.hypervolume.value for point in nothing.points] == [0, 0, 0]


def test_a_difference_of_all_shares_is_surer_than_one_of_one_share():
    draw = np.random.default_rng(1)
    found = {}
    for share in (0.5, 0.7, 0.9):
        found[share] = answers(share, (0, 1, 2), 24)
        for each in found[share]:
            moved = draw.normal(0, 0.1)
            each.rewards["short"][:] += moved if each.seed is not None else 0  # type: ignore[index]
    curve = Measured(found).curve(PAIRS[0])
    widths = [point.hypervolume.high - point.hypervolume.low for point in curve.points]
    assert curve.strong_conflict is not None
    assert curve.strong_conflict.high - curve.strong_conflict.low < min(widths)


def test_a_pilot_without_a_filter_shows_what_it_reaches_and_compares_nothing():
    pilot = [each for each in answers(0.5, (0,), 8) if each.method in (None, "rewarded_soup")]
    measured = Measured({0.5: pilot})
    assert measured.curves() == []
    shown = markdown([], measured.levels(), [], 1, 8)
    assert "| 0.5 | `rewarded_soup` | 0." in shown and "One seed" in shown


def test_equal_numbers_give_equal_tables_and_figures():
    shown = []
    for _ in range(2):
        measured = Measured({share: answers(share, (0, 1), 8) for share in (0.3, 0.7)})
        curves = measured.curves()
        shown.append((figure(curves), markdown(curves, measured.levels(), [], 2, 8)))
    assert shown[0] == shown[1]
    assert "| 0.7 | +0.0" in shown[0][1]


def whole_curve(second: str, gain: float, slope: float) -> Curve:
    """Of `vc_soup`, with the interval from each number to three times it."""
    mean, trend = (
        Difference(each, min(each, 3 * each), max(each, 3 * each)) for each in (gain, slope)
    )
    return Curve("vc_soup", second, (), mean, trend)


@pytest.mark.parametrize(
    ("gains", "slopes", "expected", "grows"),
    [
        ((0.1, 0.2), (0.1, 0.1), "supported", True),
        ((0.1, 0.0), (0.1, 0.1), "undecided", True),
        ((0.1, -0.1), (0.1, 0.0), "refuted", False),
    ],
)
def test_a_filter_is_supported_by_gains_over_both_rivals_and_refuted_by_one_loss(
    gains, slopes, expected, grows
):
    rivals = ("rewarded_soup", "random")
    (found,) = verdicts([whole_curve(*each) for each in zip(rivals, gains, slopes, strict=True)])
    assert (found.filter, found.gain, found.grows) == ("vc_soup", expected, grows)
