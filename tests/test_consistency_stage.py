"""From annotated pairs to filtered sets, through the entries of both stages (no actor needed)."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from vcsoup_dist.consistency import stage as consistency_stage
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe import MOST_VALUES
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.scores import read_scores
from vcsoup_dist.scoring import stage as scoring_stage
from vcsoup_dist.workspace import Workspace

METHODS = ["vc_soup", "rewarded_soup", "all_positive", "random"]
EQUAL = {"u+": 1.0, "u-": 1.0}
JUDGE = {"callable": "judge.py:judge"}


def write_scored_pairs(path: Path, seed: int, count: int = 80, **fixed: float) -> None:
    """Pairs with the columns u+, u-, v+, v- and now and then a gap of exactly zero."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        scores = {name: float(draw.randint(-3, 3)) for name in ("u+", "u-", "v+", "v-")}
        texts = {"prompt": f"{seed} {i}", "chosen": f"yes {i}", "rejected": f"no {i}"}
        rows.append({**texts, **scores, **fixed})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(folder: Path, model: Path, run: str = "run", filtered: str = "abc", **changed) -> Path:
    """A run whose values `filtered` are filtered."""
    (folder / "judge.py").write_text("def judge(prompt, response):\n    return 0.0\n")
    for seed, name in enumerate(("a", "b")):
        if not (folder / f"{name}.jsonl").exists():
            write_scored_pairs(folder / f"{name}.jsonl", seed)
    u, v = {"columns": ["u+", "u-"]}, {"columns": ["v+", "v-"], "sign": -1}
    recipe = {
        "name": "test",
        "model": str(model),
        "values": {
            "a": {"reward": u, "judge": JUDGE, "data": {"path": "a.jsonl", "heldout_share": 0.2}},
            "b": {"reward": v, "judge": JUDGE, "data": {"path": "b.jsonl", "heldout_share": 0.2}},
            "c": {"reward": v, "judge": JUDGE, "data": {"pairs_of": ["a", "b"]}},
        },
        "methods": METHODS,
        "scoring": {"shard_pairs": 16},
        **changed,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(folder / "recipe.yaml")
    workspace = Workspace.open(folder / run, loaded)
    plan = make_plan(loaded, Hashes(folder / run / "hashes.json"))
    makers = (scoring_stage.read, scoring_stage.score, consistency_stage.make)
    for stage, maker in zip(("read", "score", "filter"), makers, strict=True):
        due = [each for each in plan if each.stage == stage]
        if stage == "filter":
            due = [each for each in due if str(each.value) in filtered]
        maker(loaded, workspace, due)
    return folder / run


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_files: Path) -> Path:
    return make(tmp_path_factory.mktemp("filter"), model_files)


def rows_of(run: Path, method: str, value: str, file: str = "pairs") -> list[dict]:
    files = sorted((run / "filtered" / method / value).glob(f"{file}*.parquet"))
    return [row for each in files for row in pq.read_table(each).to_pylist()]


def report_of(run: Path, method: str, value: str) -> FilterReport:
    return FilterReport.read(run / "filtered" / method / value)


def source_rows(run: Path, name: str) -> dict[str, dict]:
    """The pairs of a dataset as they were written, by prompt."""
    rows = map(json.loads, (run.parent / f"{name}.jsonl").read_text().splitlines())
    return {row["prompt"]: row for row in rows}


def pooled_std(rows: list[dict], name: str) -> float:
    return float(np.std([row[name + sign] for row in rows for sign in "+-"]))


def test_kept_pairs_are_those_whose_normalised_gaps_sum_to_at_least_zero(run: Path):
    source = source_rows(run, "a")
    train = {row["prompt"][0]["content"] for row in rows_of(run, "rewarded_soup", "a")}
    rows = [source[prompt] for prompt in train]
    u, v = pooled_std(rows, "u"), pooled_std(rows, "v")
    expected = {}
    for row in rows:
        of_v = -(row["v+"] - row["v-"]) / v
        g = ((row["u+"] - row["u-"]) / u, of_v, of_v)
        if any(g) and sum(g) >= 0:
            expected[row["prompt"]] = g
    kept = rows_of(run, "vc_soup", "a")
    assert {row["prompt"][0]["content"] for row in kept} == set(expected)
    for row in kept:
        g = expected[row["prompt"][0]["content"]]
        assert [row["gap_a"], row["gap_b"], row["gap_c"]] == pytest.approx(g)
        assert row["norm"] == pytest.approx(np.linalg.norm(g))
        assert row["consistency"] == pytest.approx(sum(g) / np.linalg.norm(g) / 3**0.5)


def test_the_filtered_file_has_trls_conversational_columns(run: Path):
    for row in rows_of(run, "vc_soup", "b"):
        source = source_rows(run, "b")[row["prompt"][0]["content"]]
        assert row["prompt"] == [{"role": "user", "content": source["prompt"]}]
        assert row["chosen"] == [{"role": "assistant", "content": source["chosen"]}]
        assert row["rejected"] == [{"role": "assistant", "content": source["rejected"]}]
        assert (row["dataset"], row["swapped"]) == ("b", False)


@pytest.mark.parametrize("file", ["pairs", "heldout"])
def test_borrowed_pairs_are_swapped_to_what_the_values_own_reward_prefers(run: Path, file: str):
    found = rows_of(run, "rewarded_soup", "c", file)
    source = source_rows(run, "a") | source_rows(run, "b")
    swapped = []
    for row in found:
        given = source[row["prompt"][0]["content"]]
        own_gap = -(given["v+"] - given["v-"])
        assert own_gap != 0 and row["swapped"] == (own_gap < 0)
        answers = [row["chosen"][0]["content"], row["rejected"][0]["content"]]
        assert answers == [given["chosen"], given["rejected"]][:: -1 if row["swapped"] else 1]
        swapped.append(row["swapped"])
    assert {row["dataset"] for row in found} == {"a", "b"} and 0 < sum(swapped) < len(swapped)
    lent = rows_of(run, "rewarded_soup", "a", file) + rows_of(run, "rewarded_soup", "b", file)
    ties = [row for row in lent if is_tie(source[row["prompt"][0]["content"]])]
    assert len(lent) == len(found) + len(ties) and ties


def is_tie(row: dict) -> bool:
    """Of the reward of the value that borrows."""
    return row["v+"] == row["v-"]


Comparison = tuple[str, frozenset[str]]


def comparison(row: dict) -> Comparison:
    """What a pair compares, whichever is preferred."""
    answers = frozenset(row[side][0]["content"] for side in ("chosen", "rejected"))
    return row["prompt"][0]["content"], answers


@pytest.fixture(scope="module")
def shared_answers(tmp_path_factory, model_files: Path) -> Path:
    """A run in which two datasets order the same answers differently, and split them differently.

    One comparison is in `b` in both orders, and some prompts have another one there.
    """
    folder = tmp_path_factory.mktemp("shared")
    write_scored_pairs(folder / "a.jsonl", 7)
    rows = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    swapped = [
        {
            "prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"],
            "u+": row["u-"], "u-": row["u+"], "v+": row["v-"], "v-": row["v+"],
        }
        for row in rows
    ]  # fmt: skip
    mixed = [pair[i % 2] for i, pair in enumerate(zip(rows, swapped, strict=True))]
    twice = next(i for i, row in enumerate(rows) if row["v+"] != row["v-"])
    mixed += [rows[twice], swapped[twice]]
    mixed += [row | {"chosen": "another answer"} for row in rows[::4]]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    u, v = {"columns": ["u+", "u-"]}, {"columns": ["v+", "v-"], "sign": -1}
    values = {
        "a": {"reward": u, "judge": JUDGE, "data": {"path": "a.jsonl", "heldout_share": 0.4}},
        "b": {"reward": v, "judge": JUDGE, "data": {"path": "b.jsonl", "heldout_share": 0.1}},
        "c": {"reward": v, "judge": JUDGE, "data": {"pairs_of": ["a", "b"]}},
    }
    return make(folder, model_files, values=values, methods=["rewarded_soup", "vc_soup"])


def test_answers_that_two_datasets_order_differently_are_borrowed_once(shared_answers: Path):
    for file in ("pairs", "heldout"):
        found = [comparison(row) for row in rows_of(shared_answers, "rewarded_soup", "c", file)]
        lent = [
            comparison(row)
            for value in "ab"
            for row in rows_of(shared_answers, "rewarded_soup", value, file)
        ]
        assert len(set(found)) == len(found) > 0 and len(set(lent)) < len(lent)
        assert set(found) <= set(lent)
    own = [comparison(row) for row in rows_of(shared_answers, "rewarded_soup", "b")]
    assert len(own) == len(set(own)) + 1  # its own value keeps both orders
    dropped = report_of(shared_answers, "rewarded_soup", "c").counts.dropped
    held_out = held_out_prompts(shared_answers, "ab")
    answers = [
        row["answers_id"]
        for row in training_rows(shared_answers, "ab")
        if row["prompt_id"] not in held_out
    ]
    assert dropped["answers compared before"] == len(answers) - len(set(answers)) > 0


def training_rows(run: Path, datasets: str) -> list[dict]:
    files = [file for name in datasets for file in sorted((run / "pairs" / name).glob("train-*"))]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def held_out_prompts(run: Path, datasets: str) -> set[str]:
    files = [run / "pairs" / name / "heldout.parquet" for name in datasets]
    return {prompt for file in files for prompt in pq.read_table(file)["prompt_id"].to_pylist()}


def test_no_prompt_that_a_dataset_holds_out_is_borrowed_from_another(shared_answers: Path):
    reason = "prompt held out in another dataset"
    held_out = held_out_prompts(shared_answers, "a")
    leaks = [row for row in training_rows(shared_answers, "b") if row["prompt_id"] in held_out]
    report = report_of(shared_answers, "vc_soup", "c")
    assert report.counts.dropped[reason] == len(leaks) > 0
    heldout = rows_of(shared_answers, "vc_soup", "c", "heldout")
    prompts = {row["prompt"][0]["content"] for row in heldout}
    for method in ("rewarded_soup", "vc_soup"):
        kept = rows_of(shared_answers, method, "c")
        assert kept and not prompts & {row["prompt"][0]["content"] for row in kept}
    page = (shared_answers / "filtered/vc_soup/c/report.md").read_text()
    assert f"left out: {reason}" in page
    assert report_of(shared_answers, "vc_soup", "b").counts.dropped[reason] == 0


def test_held_out_pairs_are_not_filtered_and_not_trained_on(run: Path):
    kept = {row["id"] for row in rows_of(run, "rewarded_soup", "a")}
    heldout = rows_of(run, "vc_soup", "a", "heldout")
    assert heldout == rows_of(run, "all_positive", "a", "heldout")
    assert heldout == sorted(heldout, key=lambda row: row["id"])
    assert not kept & {row["id"] for row in heldout} and len(kept) + len(heldout) == 80


def test_every_report_accounts_for_every_pair(run: Path):
    for value in "abc":
        for method in METHODS:
            report, rows = report_of(run, method, value), rows_of(run, method, value)
            assert report.counts.kept == len(rows) > 0
            assert report.counts.kept + sum(report.counts.dropped.values()) == report.counts.pairs
            usable = report.comparison.usable
            assert sum(report.counts.sign_patterns.values()) == usable
            assert usable == len(rows_of(run, "rewarded_soup", value))
            assert usable < report.counts.pairs if value == "c" else usable == report.counts.pairs
            signs = [[int(np.sign(row[f"gap_{v}"])) for v in "abc"] for row in rows]
            names = ["".join("-0+"[sign + 1] for sign in pattern) for pattern in signs]
            counted = {name: names.count(name) for name in sorted(set(names))}
            assert report.counts.sign_patterns_kept == counted
            assert report.counts.swapped_kept == sum(row["swapped"] for row in rows)
            assert report.counts.unscored == 0


def test_the_report_says_how_the_values_gaps_go_together(run: Path):
    for value in "ac":
        report = report_of(run, "vc_soup", value)
        usable = rows_of(run, "rewarded_soup", value)
        gaps = np.array([[row[f"gap_{v}"] for v in "abc"] for row in usable])
        np.testing.assert_allclose(report.correlation, np.corrcoef(gaps.T), atol=1e-12)
        conflicts = np.array(report.conflicts)
        against = sum(
            count
            for name, count in report.counts.sign_patterns.items()
            if set(name[:2]) == {"+", "-"}
        )
        assert conflicts[0, 1] == pytest.approx(against / len(usable))
        assert report.comparison.rules


def test_the_page_shows_the_most_and_least_consistent_pairs_in_full(run: Path):
    eligible = [row for row in rows_of(run, "rewarded_soup", "a") if row["norm"] > 0]
    ranked = sorted(eligible, key=lambda row: (row["consistency"], row["id"]))
    best = sorted(eligible, key=lambda row: (-row["consistency"], row["id"]))
    page = (run / "filtered/vc_soup/a/report.md").read_text()
    places = [page.index(row["prompt"][0]["content"] + "\n") for row in best[:5] + ranked[:5]]
    assert places == sorted(places)


def test_methods_keep_what_their_names_say(run: Path):
    for value in "abc":
        kept = {method: {row["id"] for row in rows_of(run, method, value)} for method in METHODS}
        assert kept["vc_soup"] | kept["random"] <= kept["rewarded_soup"]
        assert len(kept["random"]) == len(kept["vc_soup"]) and kept["random"] != kept["vc_soup"]
        strict = rows_of(run, "all_positive", value)
        assert all(row[f"gap_{v}"] > 0 for row in strict for v in "abc")
        assert {row["id"] for row in strict} <= kept["vc_soup"]
        zero = [row for row in rows_of(run, "random", value) if row["norm"] == 0]
        assert not zero


def test_the_same_inputs_give_the_same_bytes(run: Path, model_files: Path, tmp_path: Path):
    again = make(tmp_path, model_files, filtered="c", methods=["vc_soup"])
    files = [file.relative_to(again) for file in again.rglob("*") if file.is_file()]
    compared = [f for f in files if f.parts[0] in ("pairs", "scores", "filtered")]
    assert {f.suffix for f in compared} == {".parquet", ".json", ".png", ".md"}
    for file in compared:
        assert (run / file).read_bytes() == (again / file).read_bytes(), file


def test_scores_carry_sign_and_summary(run: Path):
    folder = run / "scores" / "a" / "b"
    manifest = json.loads((folder / "manifest.json").read_text())
    source = source_rows(run, "a")
    pooled = []
    for each in manifest["files"]:
        scores = read_scores(folder / each["file"])
        assert len(scores.ids) == each["rows"]
        pooled += [*scores.chosen, *scores.rejected]
    train = {row["prompt"][0]["content"] for row in rows_of(run, "rewarded_soup", "a")}
    expected = [-source[prompt][name] for prompt in train for name in ("v+", "v-")]
    assert sorted(pooled) == sorted(expected) and manifest["rows"] == len(train)
    assert manifest["mean"] == pytest.approx(np.mean(expected))
    assert manifest["std"] == pytest.approx(np.std(expected))


def test_scope_all_takes_one_scale_over_all_datasets(tmp_path: Path, model_files: Path):
    scope = {"scope": "all"}
    run = make(tmp_path, model_files, filtered="a", consistency=scope, methods=["vc_soup"])
    scale = report_of(run, "vc_soup", "a").scale
    assert scale["a"] == scale["b"]
    rows = [
        (source_rows(run, name))[row["prompt"][0]["content"]]
        for name in "ab"
        for shard in sorted((run / "pairs" / name).glob("train-*.parquet"))
        for row in pq.read_table(shard).to_pylist()
    ]
    assert scale["a"]["a"] == pytest.approx(pooled_std(rows, "u"))


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"a": EQUAL, "b": EQUAL}, "every answer the same reward"),
        ({"a": EQUAL}, r"values.a.reward: its spread \(zscore\) is 0"),
        ({"a": {"u+": 0.0, "u-": 1.0}}, "filtered/all_positive/a: .* keeps none of"),
    ],
)
def test_rewards_that_cannot_filter_are_refused_by_name(
    tmp_path: Path, model_files: Path, fixed, message
):
    for seed, (name, scores) in enumerate(fixed.items()):
        write_scored_pairs(tmp_path / f"{name}.jsonl", seed, **scores)
    with pytest.raises(UserError, match=message):
        make(tmp_path, model_files, methods=["all_positive"])


def test_more_values_than_a_sign_pattern_holds_are_refused(tmp_path: Path, model_files: Path):
    u = {"reward": {"columns": ["u+", "u-"]}, "judge": JUDGE}
    values = {f"w{i}": u for i in range(20)}
    values["a"] = {**u, "data": {"path": "a.jsonl"}}
    with pytest.raises(UserError, match="values: 21 are more than the 20"):
        make(tmp_path, model_files, values=values, methods=["vc_soup"])
    assert not (tmp_path / "run").exists()  # nothing was read or scored


def test_the_signs_of_as_many_values_as_a_recipe_may_have_fit_in_32_bits():
    assert 3**MOST_VALUES <= 2**32
