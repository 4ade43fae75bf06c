"""`vcsoup compare`: finished runs on the first one's scale, paired where they answer the same."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import vcsoup
from rich.console import Console

from vcsoup_dist.cli.comparing import compare
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.answers import Answers
from vcsoup_dist.report.comparing.compare import RunsCompared, compare_runs
from vcsoup_dist.report.comparing.finished import FinishedRun, read_run, read_runs
from vcsoup_dist.report.comparing.show import show
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.report.statistics.summarise import summarise
from vcsoup_dist.workspace import Product, Workspace

REWARDS = "def a(prompt, response): ...\ndef b(prompt, response): ...\ndef c(prompt, response): ..."


def write_run(
    folder: Path,
    name: str,
    shift: float = 0.0,
    prompts: range = range(24),
    reward: str = "a",
    values: str = "ab",
    **recipe: object,
) -> Path:
    """A run directory with its answers and its report: rewards are 4 λ + shift + noise."""
    home = folder / f"{name}-recipe"
    (home / "base").mkdir(parents=True)
    (home / "base" / "config.json").write_text("{}")
    (home / "pairs.jsonl").touch()
    (home / "rewards.py").write_text(REWARDS)
    rewards = {value: {"callable": f"rewards.py:{value}"} for value in values}
    rewards["b"] = {"callable": f"rewards.py:{'b' if reward == 'a' else reward}"}
    content = {
        "name": name, "model": "base", "seeds": [0, 1, 2], "soup": {"grid": 0.5},
        "values": {v: {"data": {"path": "pairs.jsonl"}, "reward": rewards[v]} for v in values},
    } | recipe  # fmt: skip
    (home / "recipe.yaml").write_text(yaml.safe_dump(content))
    plan, workspace = plan_of(folder, name)
    rng = np.random.default_rng(abs(hash_of(name)))
    hard = {v: np.random.default_rng(ord(v)).standard_normal(1000)[list(prompts)] for v in values}
    found = []
    for each in (one for one in plan if one.stage == "evaluate"):
        weights = dict(zip(values, each.weights, strict=True)) if each.weights else None
        earned = {}
        for v in values:
            mean = 4 * weights[v] + shift if weights else -0.5
            earned[v] = mean + 3 * hard[v] + 0.3 * rng.standard_normal(len(prompts))
        found.append(Evaluated(each.name, each.method, each.seed, weights, earned))
        with workspace.publishing(each) as draft:
            answers_of(prompts, earned).write(draft.output)
    with workspace.publishing(plan[-1]) as draft:
        summarise(found, resamples=200, confidence=0.95).write(draft.output)
    return folder / name


def plan_of(folder: Path, name: str) -> tuple[list[Product], Workspace]:
    loaded = load_recipe(folder / f"{name}-recipe" / "recipe.yaml")
    plan = make_plan(loaded, Hashes(folder / "hashes.json"))
    return plan, Workspace.open(folder / name, loaded)


def edit_recipe(folder: Path, name: str, value: str, judge: str) -> None:
    """Another judge of a value."""
    file = folder / f"{name}-recipe" / "recipe.yaml"
    content = yaml.safe_load(file.read_text())
    content["values"][value]["judge"] = {"callable": f"rewards.py:{judge}"}
    file.write_text(yaml.safe_dump(content))


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()[:4], "big")


def answers_of(prompts: range, rewards: dict[str, np.ndarray]) -> Answers:
    """In an order that is not that of the ids."""
    count = len(prompts)
    ids = [f"{each:04d}" for each in prompts]
    backwards = {value: each[::-1] for value, each in rewards.items()}
    return Answers(
        ids[::-1], ["a"] * count, [[{"role": "user", "content": "?"}]] * count, ["!"] * count,
        [1] * count, [True] * count, [0.0] * count, [0.0] * count, [0.0] * count, [True] * count,
        backwards,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("compare")
    write_run(found, "small")
    write_run(found, "large", shift=1.0)
    write_run(found, "other", shift=1.0, prompts=range(12, 36))
    return found


def compared(*roots: Path) -> RunsCompared:
    return compare_runs(read_runs(roots))


def test_a_run_that_is_better_differs_and_its_balanced_soup_is_above(folder):
    found = compared(folder / "small", folder / "large")
    assert [each.name for each in found.methods] == ["large: vc_soup", "small: vc_soup"]
    (pair,) = found.pairs
    assert pair.differs and pair.first == "large: vc_soup"
    first, second = found.balanced
    assert first.run == "small" and all(v.difference is None for v in first.values.values())
    for cell in second.values.values():
        assert 0 < cell.low < cell.difference < cell.high and 0.5 < cell.difference < 1.5
    assert found.candidates == 3 and found.scale.method == "vc_soup"
    assert not any("other prompts" in note for note in found.notes)


def test_the_scale_is_the_first_runs(folder):
    roots = [folder / "small", folder / "large"]
    for first, second in (roots, roots[::-1]):
        found = compared(first, second)
        assert found.scale == read_run(first, "one").summary.scale
        own = read_run(first, "one").summary.methods[0]
        (mine,) = [each for each in found.methods if each.name.startswith(first.name)]
        assert mine.hypervolume == pytest.approx(own.corrected)


def test_the_same_prompts_are_paired_and_others_are_not(folder):
    paired = compared(folder / "small", folder / "large")
    unpaired = compared(folder / "small", folder / "other")
    widths = [
        found.balanced[1].values["a"].high - found.balanced[1].values["a"].low
        for found in (paired, unpaired)
    ]
    assert widths[1] > 3 * widths[0]  # prompts differ by ten times what answers do
    (note,) = [each for each in unpaired.notes if "other prompts" in each]
    assert "12 of 24 are the same" in note and "unpaired" in note
    assert paired.pairs[0].differs and not unpaired.pairs[0].differs


def test_a_run_does_not_differ_from_its_copy(folder, tmp_path):
    shutil.copytree(folder / "small", tmp_path / "copy")
    found = compared(folder / "small", tmp_path / "copy")
    (pair,) = found.pairs
    assert (pair.difference, pair.differs) == (0, False)
    assert all(v.difference == 0 for v in found.balanced[1].values.values())


def test_several_runs_and_methods_are_compared_between_runs_only(folder, tmp_path):
    write_run(tmp_path, "two", methods=["vc_soup", "rewarded_soup"], soup={"grid": 0.25})
    found = compared(folder / "small", tmp_path / "two", folder / "large")
    assert len(found.methods) == 4 and len(found.pairs) == 5
    assert found.candidates == 3 and found.like.endswith("vc_soup")
    assert {each.candidates for each in found.methods} == {3, 5}
    assert all(
        pair.first.partition(":")[0] != pair.second.partition(":")[0] for pair in found.pairs
    )


def test_settings_and_seeds_that_differ_are_said(folder, tmp_path):
    root = write_run(tmp_path, "cold", evaluation={"temperature": 0.5}, seeds=[0])
    notes = " ".join(compared(folder / "small", root).notes)
    assert "evaluation.temperature is 1.0 in small and 0.5 in cold." in notes
    assert "There is one seed of vc_soup of cold" in notes and "Fewer than 8 seeds" in notes


def test_runs_of_other_values_or_rewards_are_refused(folder, tmp_path):
    root = write_run(tmp_path, "three", values="abc")
    with pytest.raises(UserError, match="three: its values are a, b, c, those of small a, b; only"):
        compared(folder / "small", root)
    root = write_run(tmp_path, "judged", reward="c")
    with pytest.raises(UserError, match="judged: another reward judges `b` than in small; name"):
        compared(folder / "small", root)


def test_a_file_beside_the_rewards_makes_no_other_reward(folder):
    runs: list[FinishedRun] = read_runs([folder / "small", folder / "large"])
    code = runs[1].made_from["judges"]["b"]["code"]
    code["notes.py"] = [1, "digest"]
    compare_runs(runs)
    code["rewards.py"] = [1, "digest"]
    with pytest.raises(UserError, match="another reward judges `b`"):
        compare_runs(runs)


def test_runs_that_are_not_finished_are_refused(folder, tmp_path):
    shutil.copytree(folder / "small", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluation" / "vc_soup")
    with pytest.raises(UserError, match="the answers that the report is made from are gone"):
        compared(folder / "small", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "report")
    with pytest.raises(UserError, match="has no report yet; finish the run with `vcsoup run`"):
        compared(folder / "small", tmp_path / "run")
    with pytest.raises(UserError, match="given twice"):
        compared(folder / "small", folder / "large" / ".." / "small")


@pytest.mark.parametrize("published", ["evaluation/", "evaluation/base", "evaluation/vc_soup/"])
def test_a_report_that_is_not_of_the_answers_is_refused(folder, tmp_path, published):
    root = write_run(tmp_path, "run")
    edit_recipe(tmp_path, "run", value="b", judge="c")
    plan, workspace = plan_of(tmp_path, "run")
    for each in (one for one in plan if one.name.startswith(published)):
        answers = Answers.read(root / each.name)
        with workspace.publishing(each) as draft:
            answers.write(draft.output)
    said = r"run: the report is not of the answers in .*; run `vcsoup report .*run` first"
    with pytest.raises(UserError, match=said):
        compared(folder / "small", root)


def test_balanced_soups_are_picked_from_equal_numbers_of_candidates(folder, tmp_path):
    fine = read_run(write_run(tmp_path, "fine", soup={"grid": 0.25}), "fine")
    lucky = [one for one in fine.evaluated if one.weights == {"a": 0.25, "b": 0.75}]
    assert len(lucky) == 3
    for one in lucky:  # thinning leaves it out
        for rewards in one.rewards.values():
            rewards += 10
    found = compare_runs([read_run(folder / "small", "small"), fine])
    assert [each.picked_from for each in found.balanced] == [4, 4]
    assert found.balanced[1].candidate == "vc_soup: 0.5 a + 0.5 b"
    said = shown(found)
    assert "picked on these prompts, and the intervals do not count that" in said
    assert "hold together" not in said


def test_one_seed_says_that_these_policies_differ(folder, tmp_path):
    single = compared(folder / "small", write_run(tmp_path, "single", shift=1.0, seeds=[0]))
    assert single.pairs[0].differs and "these policies differ" in shown(single)
    several = shown(compared(folder / "small", folder / "large"))
    assert " differ" in several and "these policies" not in several


def test_unequal_numbers_of_seeds_are_said(folder, tmp_path):
    two = compared(folder / "small", write_run(tmp_path, "two", seeds=[0, 1]))
    assert "the one with fewer makes the intervals wide" in " ".join(two.notes)
    one = compared(folder / "small", write_run(tmp_path, "one", seeds=[0]))
    assert "too narrow for the methods" in " ".join(one.notes)
    same = compared(folder / "small", folder / "large")
    assert "unequal" not in " ".join(same.notes)


def test_another_start_is_said(folder, tmp_path):
    def starts(first: Path, second: Path) -> list[str]:
        notes = compared(first, second).notes
        return [note for note in notes if "another model" in note]

    made = {rate: write_run(tmp_path, f"at-{rate}", sft={"learning_rate": rate}) for rate in (1, 2)}
    assert starts(made[1], made[2]) == [
        "theta_0 of at-2 is made from another model, data or SFT settings than that of at-1."
    ]
    assert starts(folder / "small", made[1]) == ["at-1 starts from another model than small."]
    shutil.copytree(made[1], tmp_path / "copy")
    assert starts(made[1], tmp_path / "copy") == []


def shown(found: RunsCompared) -> str:
    said = io.StringIO()
    show(found, Console(file=said, width=200))
    return said.getvalue()


@pytest.mark.processes
def test_the_command_prints_tables_or_json(folder):
    said = vcsoup("compare", "small", "large-recipe/../large", folder=folder)
    assert "scale: theta_0 and the policies of vc_soup in small; prompts: 24 in each run" in said
    assert "large: vc_soup  small: vc_soup" in " ".join(said.split("\n")) and "differ" in said
    found = json.loads(vcsoup("compare", "small", "large", "--json", folder=folder))
    assert found["runs"] == ["small", "large"] and found["pairs"][0]["low"] > 0
    with pytest.raises(UserError, match="give two runs or more"):
        compare([folder / "small"])
