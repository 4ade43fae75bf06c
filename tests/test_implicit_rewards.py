"""MODPO with implicit rewards: the margin by its formula, and two waves of training in the plan."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import write_model_files, write_pairs
from test_tokens import random_parts, write

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan, stage_turns, to_make
from vcsoup_dist.pipeline.run import due_by_command
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.reference import PartDraft, Reference, begin_part, part_name
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.report.facts import commands_for
from vcsoup_dist.slurm_jobs.submit import as_script, next_steps
from vcsoup_dist.training.implicit_rewards import ImplicitReward, ImplicitRewards
from vcsoup_dist.training.selection import ROW
from vcsoup_dist.workspace import Workspace

Sides = dict[int, tuple[list[float], list[float]]]


def logps_under(folder: Path, tokens: TokenFile, seed: int) -> tuple[Reference, Sides]:
    """Made up log-probs of all usable pairs, as a product and as plain lists by row."""
    draw = np.random.default_rng(seed)
    rows = np.flatnonzero(tokens.usable())
    sides, every = {}, []
    for row in rows.tolist():
        lengths = [side.answer_length for side in tokens.pair(row)]
        logps = -draw.exponential(3, sum(lengths)).astype(np.float32)
        every.append(logps)
        listed = [float(each) for each in logps]
        sides[row] = listed[: lengths[0]], listed[lengths[0] :]
    part = folder / part_name(0)
    folder.mkdir()
    begin_part(part, tokens, rows)
    PartDraft(part).write(0, np.concatenate(every), len(rows))
    return Reference(folder, tokens), sides


def test_a_margin_is_the_weighted_sum_of_the_policies_log_ratios_in_float64(tmp_path):
    """m = sum of lambda_j beta_j [log pi_j/pi_0 (chosen) - log pi_j/pi_0 (rejected)]."""
    files = {name: write(tmp_path / name, random_parts(i, 9), []) for i, name in enumerate("ab")}
    under = {
        model: {name: logps_under(tmp_path / f"{model}-{name}", files[name], seed) for name in "ab"}
        for seed, model in enumerate(("theta_0", "u", "v"))
    }
    references = {m: {name: each[0] for name, each in of.items()} for m, of in under.items()}
    settings = {"u": (0.25, 0.1), "v": (0.45, 0.7)}
    rewards = ImplicitRewards(
        references["theta_0"],
        [ImplicitReward(*settings[model], references[model]) for model in settings],
    )
    rows = np.zeros(18, ROW)
    rows["dataset"], rows["row"] = np.repeat([0, 1], 9), np.tile(np.arange(9), 2)
    rows["swapped"] = np.arange(18) % 3 == 1
    found = rewards.margins(files, rows)
    for margin, (dataset, row, swapped, *_) in zip(found, rows.tolist(), strict=True):
        name = "ab"[dataset]
        if not files[name].usable()[row]:
            assert margin == 0
            continue

        def difference(model: str, name: str = name, row: int = row) -> float:
            chosen, rejected = under[model][name][1][row]
            return math.fsum(chosen) - math.fsum(rejected)

        expected = math.fsum(
            weight * beta * (difference(model) - difference("theta_0"))
            for model, (weight, beta) in settings.items()
        )
        assert margin == pytest.approx(-expected if swapped else expected, rel=1e-12, abs=1e-12)


RECIPE = {
    "name": "x",
    "model": "base",
    "values": {
        name: {"data": {"path": "pairs.jsonl"}, "reward": {"callable": "rewards.py:length"}}
        for name in ("long", "kind")
    },
    "reweighting": {"weights": [[0.5, 0.5], [1, 0]]},
    "soup": {"weights": [[0.5, 0.5]]},
    "seeds": [0, 3],
}
IMPLICIT = {"kind": "modpo", "rewards": "implicit"}
SECOND = {f"policies/implicit/long-0.50_kind-0.50/seed-{seed}" for seed in (0, 3)}
LOGPS = {f"logps/rewarded_soup/kind/seed-{seed}/long" for seed in (0, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("implicit")
    write_model_files(folder / "base")
    write_pairs(folder / "pairs.jsonl", 5)
    (folder / "rewards.py").write_text("def length(p, r): ...\n")
    return folder


def planned(folder: Path, methods: dict, **changes: object):
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE | {"methods": methods} | changes, sort_keys=False))
    recipe = load_recipe(file)
    return recipe, make_plan(recipe, Hashes(folder / "hashes.json"))


BOTH = {"rewarded_soup": {}, "implicit": IMPLICIT, "modpo": {}}


def test_implicit_rewards_change_nothing_of_what_is_made_without_them(folder):
    _, before = planned(folder, {"rewarded_soup": {}, "modpo": {}})
    _, after = planned(folder, BOTH)
    now = {each.name: each.fingerprint for each in after}
    assert all(now[each.name] == each.fingerprint for each in before if each.stage != "report")
    explicit = next(each for each in after if each.stage == "train" and each.method == "modpo")
    assert explicit.made_from["reweighting"] == {
        "labels": "margin", "weights": {"long": 0.5, "kind": 0.5},
        "datasets": {"long": ["long"], "kind": ["kind"]}, "value": "long",
    }  # fmt: skip


def test_a_policy_reads_log_probs_under_the_others_of_its_seed_and_of_its_own_pairs(folder):
    recipe, plan = planned(folder, BOTH)
    place = {each.name: i for i, each in enumerate(plan)}
    assert all(place[one.name] < place[each.name] for each in plan for one in each.inputs)
    found = {each.name: each for each in plan}
    assert {each.name for each in plan if each.stage == "reference"} == {
        *LOGPS, "reference/long", "reference/kind",
    }  # fmt: skip
    for name in SECOND:
        seed = name.rpartition("/")[2]
        read = {each.name for each in found[name].inputs_of("reference")}
        logps = f"logps/rewarded_soup/kind/{seed}/long"
        assert read == {"reference/long", "reference/kind", logps}
        assert [each.name for each in found[logps].inputs_of("train")] == [
            f"policies/rewarded_soup/kind/{seed}"
        ]
        assert {each.name for each in found[logps].covers.values()} == {"union"}
    # At the corner the margin is 0, whatever the policies are.
    corner = found["policies/implicit/long-1.00_kind-0.00/seed-0"]
    assert not {each.name for each in corner.inputs} & LOGPS


def test_training_takes_two_turns_and_everything_else_one(folder, tmp_path):
    recipe, plan = planned(folder, BOTH)
    turns = stage_turns(to_make(plan, Workspace(tmp_path / "run"), recipe), recipe)
    assert [stage.name for stage, _ in turns] == [
        *("read", "score", "filter", "union", "tokens", "reference", "train", "reference"),
        *("train", "merge", "evaluate", "report"),
    ]
    names = [{each.name for each in products} for _, products in turns]
    assert names[7] == LOGPS and names[8] == SECOND
    # As many without them as there are stages.
    recipe, plan = planned(folder, {"rewarded_soup": {}, "modpo": {}})
    due = to_make(plan, Workspace(tmp_path / "run"), recipe)
    assert len(stage_turns(due, recipe)) == len({each.stage for each in due})


def test_slurm_has_a_job_for_each_turn(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("VCSOUP_SITE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    slurm = {"train": {"time": "12:00:00"}}
    recipe, plan = planned(folder, BOTH, launch={"slurm": slurm})
    workspace = Workspace(tmp_path / "run")
    steps = {each.job.name: each.job for each in next_steps(recipe, workspace, plan, [])}
    assert list(steps) == [
        *("score", "filter", "reference", "train", "reference_2", "train_2"),
        *("merge", "evaluate", "report"),
    ]
    assert steps["reference_2"].after == ("filter", "train")
    assert {"reference", "reference_2"} <= set(steps["train_2"].after)
    assert {"merge", "train", "train_2"} <= set(steps["evaluate"].after)
    lines = as_script(folder / "recipe.yaml", recipe, workspace, plan, [])
    (second,) = (line for line in lines if line.startswith("train_2="))
    assert ":$reference_2" in second and "--array=0-1 " in second and "12:00:00" in second
    assert all(name in second for name in SECOND) and "--job-name=x-train_2" in second


def test_stage_by_stage_the_commands_come_again(folder, tmp_path):
    recipe, plan = planned(folder, BOTH)
    named = [line.split()[1] for line in commands_for(plan[-1])[1:]]
    first = named.index("reference")
    assert named.index("reference", first + 1) > named.index("train")
    missing = [each for each in plan if each.stage in ("reference", "train")]
    due = due_by_command(missing, "reference", lambda product: True)
    assert {each.name for each in due} == {"reference/long", "reference/kind"}
    trained = [each for each in missing if each.method != "rewarded_soup"]
    due = due_by_command(trained, "reference", lambda product: True)
    assert {each.name for each in due} == {*LOGPS, "reference/long", "reference/kind"}
    # `train` takes along what its policy reads.
    (name, _) = sorted(SECOND)
    due = due_by_command(trained, "train", lambda product: product.name == name)
    assert [each.name for each in due] == [
        *("reference/long", "reference/kind", "logps/rewarded_soup/kind/seed-0/long", name),
    ]


REFUSED = {
    "no policies": ({"modpo": IMPLICIT}, "add the method `rewarded_soup`"),
    "no such method": (
        {"rewarded_soup": {}, "modpo": IMPLICIT | {"rewards_of": "x"}}, "`x` is no method of this",
    ),
    "no policy per value": (
        {"relabelled": {}, "modpo": IMPLICIT | {"rewards_of": "relabelled"}},
        "`relabelled` is no method .* policy per value",
    ),
    "not read": ({"vc_soup": {}, "modpo": {"rewards_of": "vc_soup"}}, "take it out"),
}  # fmt: skip


@pytest.mark.parametrize("methods, line", REFUSED.values(), ids=REFUSED.keys())
def test_implicit_rewards_that_nothing_gives_are_refused(folder, methods, line):
    with pytest.raises(UserError, match=f"methods.modpo: .*{line}") as refused:
        planned(folder, methods)
    assert len(str(refused.value).splitlines()) == 1


def test_another_method_may_give_the_rewards_and_the_report_says_which(folder):
    methods = {"vc_soup": {}, "implicit": IMPLICIT | {"rewards_of": "vc_soup"}}
    recipe, plan = planned(folder, methods)
    names = {each.name for each in plan}
    assert {f"logps/vc_soup/kind/seed-{seed}/long" for seed in (0, 3)} <= names
    assert recipe.methods["implicit"].notes(recipe) == [
        "its rewards are the policies of `vc_soup`; its cost is without theirs"
    ]


def test_a_value_that_borrows_pairs_has_log_probs_of_all_that_it_borrows(folder):
    values = RECIPE["values"] | {"new": {"data": {"pairs_of": ["long", "kind"]}}}
    values["new"]["reward"] = {"callable": "rewards.py:length"}
    changes = {
        "values": values, "seeds": [0], "soup": {"weights": [[0.2, 0.3, 0.5]]},
        "reweighting": {"weights": [[0.2, 0.3, 0.5]], "modpo_value": "new"},
    }  # fmt: skip
    _, plan = planned(folder, {"rewarded_soup": {}, "implicit": IMPLICIT}, **changes)
    assert {each.name for each in plan if each.name.startswith("logps/")} == {
        f"logps/rewarded_soup/{value}/seed-0/{dataset}"
        for value in ("long", "kind") for dataset in ("long", "kind")
    }  # fmt: skip
