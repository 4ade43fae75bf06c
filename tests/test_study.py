"""The parts of tools/study that decide what the study compares."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "study"))

import contrasts
import figures
import real
import results
import words
from folds import FOLDS, fold_of, pairs_in, scored_by, write_pairs

from vcsoup_dist.preferences.pair import Pair, pair_id
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.report.statistics.summarise import summarise

WEIGHTS = [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)]
SEEDS = (0, 1, 2)


def pair(question: str, chosen: str, rejected: str) -> Pair:
    prompt = [{"role": "user", "content": question}]
    return Pair(pair_id(prompt, chosen, rejected), prompt, chosen, rejected)


def test_a_fold_is_read_back_as_it_was_written_and_shares_no_prompt_with_another(tmp_path):
    pairs = [pair(f"question {i // 2}", f"good {i}", f"bad {i}") for i in range(120)]
    prompts = []
    for fold in range(FOLDS):
        own = [each for each in pairs if fold_of(each) == fold]
        assert write_pairs(tmp_path / f"{fold}.jsonl", own) == len(own) > 20
        assert list(pairs_in(tmp_path / f"{fold}.jsonl")) == own
        prompts.append({each.prompt[0]["content"] for each in own})
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 60


def test_no_reward_scores_a_pair_of_its_own_fold():
    pairs = [pair(str(i), "good", "bad") for i in range(60)]
    assert {(fold_of(each), scored_by(each)) for each in pairs} == {(0, 1), (1, 0), (2, 0)}


def test_a_held_out_prompt_that_is_trained_on_is_refused():
    first, second = pair("one", "good", "bad"), pair("one", "better", "worse")
    real.check_heldout({"helpful": [first]}, {"helpful": [pair("two", "good", "bad")]})
    with pytest.raises(SystemExit, match=r"helpful_test.jsonl: 1 pairs have prompts of training"):
        real.check_heldout({"harmless": [first]}, {"helpful": [second]})


def test_other_data_are_refused_in_a_folder_that_is_begun(tmp_path):
    data, model = tmp_path / "data", tmp_path / "model"
    data.mkdir(), model.mkdir()
    (model / "config.json").write_text("{}")
    for value in ("helpful", "harmless"):
        for part in ("train", "test"):
            (data / f"{value}_{part}.jsonl").write_text("{}\n")
    real.check_inputs(data, [model], tmp_path / "out")
    real.check_inputs(data, [model], tmp_path / "out")
    (data / "helpful_train.jsonl").write_text("{}\n{}\n")
    with pytest.raises(SystemExit, match=r"was made of other data or models"):
        real.check_inputs(data, [model], tmp_path / "out")


def test_the_words_judge_learns_words_and_does_not_see_how_many_there_are(tmp_path):
    pairs = [pair(str(i), f"kind words number {i}", f"rude words number {i}") for i in range(40)]
    words.train(pairs, tmp_path / "words.json")
    kind, rude, twice = words.rewards(
        ["kind words", "rude words", "kind words kind words"], tmp_path / "words.json"
    )
    assert kind > rude
    assert twice == pytest.approx(kind, abs=1e-12)


def evaluated(gains: dict[str, float], candidates: dict[str, list[tuple[float, float]]]):
    """Two values on 60 prompts; a method's candidates lie on a line, moved by its gain."""
    rng = np.random.default_rng(0)
    easy = rng.normal(size=(2, 60))
    rows = [Evaluated("base", None, None, None, {"a": easy[0], "b": easy[1]})]
    for method, gain in gains.items():
        for seed in SEEDS:
            for weights in candidates[method]:
                noise = 0.05 * rng.normal(size=(2, 60))
                rewards = easy + noise + gain + np.array(weights)[:, None]
                rows.append(
                    Evaluated(
                        f"{method}/{seed}/{weights}", method, seed,
                        dict(zip("ab", weights, strict=True)),
                        {"a": rewards[0], "b": rewards[1]},
                        is_soup=method != "scalarised",
                    )
                )  # fmt: skip
    return rows


def test_planned_differences_find_a_gain_and_none_where_there_is_none():
    gains = {"rewarded_soup": 0.0, "vc_soup": 0.0, "strict": 0.3, "random": 0.0, "scalarised": 0.0}
    three = [WEIGHTS[0], WEIGHTS[2], WEIGHTS[4]]
    candidates = dict.fromkeys(gains, WEIGHTS) | {"scalarised": three}
    rows = evaluated(gains, candidates)
    found = {(each.first, each.second, each.kind): each for each in contrasts.planned(rows)}
    verdicts = {key: contrasts.verdict(each, each) for key, each in found.items()}
    equal = "equal numbers and cost"
    assert verdicts["strict", "rewarded_soup", equal] == "supported"
    assert verdicts["strict", "random", equal] == "supported"
    assert verdicts["vc_soup", "rewarded_soup", equal] == "undecided"
    assert verdicts["strict", "scalarised", "equal numbers"] == "supported"
    assert found["strict", "scalarised", "equal numbers"].candidates == (3, 3)
    assert found["strict", "scalarised", "equal cost"].candidates == (5, 2)


def test_a_planned_difference_is_that_of_the_report():
    gains = {"rewarded_soup": 0.0, "vc_soup": 0.1, "strict": 0.3, "random": 0.0, "scalarised": 0.0}
    rows = evaluated(gains, dict.fromkeys(gains, WEIGHTS))
    found = {(each.first, each.second): each for each in contrasts.planned(rows)}
    compared = summarise(rows, resamples=contrasts.RESAMPLES, confidence=0.95).comparisons
    assert compared is not None
    of_report = {(each.first, each.second): each.difference for each in compared.pairs}
    pair = ("strict", "rewarded_soup")
    assert found[pair].difference == pytest.approx(of_report[pair], abs=1e-12)
    # The report's intervals hold for all ten pairs together, these for three: they are narrower.
    width = next(
        each.high - each.low for each in compared.pairs if (each.first, each.second) == pair
    )
    assert 0.5 * width < found[pair].high - found[pair].low < width


def contrast(low: float, high: float) -> contrasts.Contrast:
    return contrasts.Contrast("a", "b", "equal", (5, 5), (low + high) / 2, low, high, 1.0)


@pytest.mark.parametrize(
    ("classifiers", "words_judge", "expected"),
    [
        ((0.1, 0.2), (0.1, 0.2), "supported"),
        ((0.1, 0.2), (-0.1, 0.2), "supported"),
        ((0.1, 0.2), (-0.2, -0.1), "undecided"),
        ((-0.2, -0.1), (-0.1, 0.2), "refuted"),
        ((-0.2, -0.1), (0.1, 0.2), "undecided"),
        ((-0.1, 0.1), (0.1, 0.2), "undecided"),
    ],
)
def test_a_verdict_is_the_classifiers_unless_the_words_show_the_opposite(
    classifiers, words_judge, expected
):
    assert contrasts.verdict(contrast(*classifiers), contrast(*words_judge)) == expected


def test_a_scale_of_another_method_than_the_baseline_is_refused():
    gains = {"vc_soup": 0.1, "rewarded_soup": 0.0, "strict": 0.3, "random": 0.0, "scalarised": 0.0}
    with pytest.raises(ValueError, match=r"vc_soup spans the scale; rewarded_soup must come first"):
        contrasts.planned(evaluated(gains, dict.fromkeys(gains, WEIGHTS)))


def test_figures_and_tables_are_made_of_the_numbers(tmp_path):
    gains = dict.fromkeys(results.METHODS, 0.0) | {"strict": 0.3}
    rows = evaluated(gains, dict.fromkeys(gains, WEIGHTS))
    summary = summarise(rows, resamples=200, confidence=0.95)
    planned = contrasts.differences(rows, results.whole_scale(summary))
    both = results.judged({"classifiers": planned, "words": planned})
    assert [each["verdict"] for each in both if each["first"] == "strict"] == ["supported"] * 4
    judges = ("classifiers", "words")
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        figures.write(
            dict.fromkeys(judges, planned), dict.fromkeys(judges, summary), results.METHODS,
            tmp_path / folder,
        )  # fmt: skip
    for name in ("contrasts.svg", "fronts.svg"):
        drawn = (tmp_path / "one" / name).read_bytes()
        assert drawn == (tmp_path / "other" / name).read_bytes()
        assert b"<svg" in drawn
