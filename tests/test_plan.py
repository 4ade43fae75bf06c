"""What must be made, and what may go."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import write_model_files, write_pairs

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.locks import SHARED, Lock
from vcsoup_dist.pipeline.clean import removable, remove
from vcsoup_dist.pipeline.graph import make_plan, reads, to_make
from vcsoup_dist.pipeline.plan_file import read_plan, write_plan
from vcsoup_dist.pipeline.run import due_by_command
from vcsoup_dist.pipeline.stages import STAGES
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.pairs_read import PairsRead
from vcsoup_dist.theta_0 import find_theta_0
from vcsoup_dist.workspace import Product, Workspace

RECIPE = {
    "name": "x",
    "model": "base",
    "values": {
        "long": {"data": {"path": "pairs.jsonl"}, "reward": {"callable": "rewards.py:longer"}},
        "short": {"data": {"pairs_of": ["long"]}, "reward": {"callable": "rewards.py:shorter"}},
    },
    "methods": ["rewarded_soup", "random", "vc_soup"],
    "soup": {"grid": 0.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    write_model_files(folder / "base")
    write_pairs(folder / "pairs.jsonl", 5)
    (folder / "rewards.py").write_text("def longer(p, r): ...\ndef shorter(p, r): ...\n")
    return folder


def planned(folder: Path, **changes: object) -> tuple[Recipe, list[Product]]:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE | changes))
    recipe = load_recipe(file)
    return recipe, make_plan(recipe, Hashes(folder / "hashes.json"))


def pretend_made(workspace: Workspace, products: list[Product]) -> None:
    for product in products:
        with workspace.publishing(product):
            pass


def names(products: list[Product]) -> set[str]:
    return {product.name for product in products}


def test_every_product_comes_after_its_inputs_and_methods_share_what_they_can(folder):
    _, plan = planned(folder)
    place = {product.name: i for i, product in enumerate(plan)}
    assert all(place[each.name] < place[p.name] for p in plan for each in p.inputs)
    counts = {stage: sum(p.stage == stage for p in plan) for stage in STAGES}
    assert counts == {
        "read": 1, "score": 2, "filter": 6, "union": 0, "tokens": 1, "in_context": 0, "sft": 0,
        "reference": 1, "train": 6, "merge": 9, "evaluate": 10, "report": 1,
    }  # fmt: skip


def test_where_it_runs_does_not_change_what_is_made(folder):
    _, plan = planned(folder)
    elsewhere = {
        "launch": {"ranks": 8},
        "scoring": {"actors": 4},
        "training": {
            "activation_offload": True,
            "attention": "segments",
            "checkpoint_every": 7,
            "checkpoints_kept": 3,
            "evaluate_every": 9,
            "nvme_path": "/scratch",
        },
        "evaluation": {"actors": 3},
    }
    _, other = planned(folder, **elsewhere)
    assert [p.fingerprint for p in plan] == [p.fingerprint for p in other]


def test_how_often_it_saves_decides_the_policy_where_the_best_checkpoint_becomes_it(folder):
    def policies(every: int) -> list[str]:
        training = {"export": "best", "checkpoint_every": every}
        return [p.fingerprint for p in planned(folder, training=training)[1] if p.stage == "train"]

    assert not set(policies(7)) & set(policies(8))


CHANGES = {
    "threshold": ({"consistency": {"threshold": 0.5}}, {"filter", "train", "merge", "evaluate"}),
    "learning rate": ({"training": {"learning_rate": 1e-3}}, {"train", "merge", "evaluate"}),
    "longest answer": ({"evaluation": {"max_new_tokens": 7}}, {"evaluate"}),
    "longest text": (
        {"training": {"max_length": 99}},
        {"tokens", "reference", "train", "merge", "evaluate"},
    ),
}


@pytest.mark.parametrize("change, stages", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_touches_only_what_is_made_from_it(folder, change, stages):
    before = {p.name: p.fingerprint for p in planned(folder)[1]}
    _, plan = planned(folder, **change)
    touched = {p.stage for p in plan if p.fingerprint != before[p.name]}
    assert touched == stages | {"report"}


def test_with_a_warm_up_all_that_starts_from_theta_0_is_made_from_it_alone(folder):
    before = {p.fingerprint for p in planned(folder)[1]}
    _, plan = planned(folder, sft={})
    place = {product.name: i for i, product in enumerate(plan)}
    assert all(place[each.name] < place[p.name] for p in plan for each in p.inputs)
    (theta_0,) = (p for p in plan if p.stage == "sft")
    assert theta_0.name == "theta_0"
    assert names(list(theta_0.inputs)) == {"pairs/long", "tokens/long"}
    starting = {p.stage for p in plan if theta_0 in p.inputs}
    assert starting == {"reference", "train", "evaluate", "report"}
    assert all(theta_0 in p.inputs for p in plan if p.stage == "evaluate")
    assert [p.name for p in plan if "model" in p.sources] == ["tokens/long", "theta_0"]
    assert {p.stage for p in plan if p.fingerprint in before} == {
        *("read", "score", "filter", "tokens")
    }


THETA_0_CHANGES = {
    "warm-up's learning rate": ({"sft": {"learning_rate": 1e-3}}, True),
    "longest text": ({"training": {"max_length": 99}}, True),
    "training's learning rate": ({"training": {"learning_rate": 1e-3}}, False),
    "training's steps": ({"training": {"steps": 3, "epochs": 2, "pairs_per_step": 9}}, False),
    "objective": ({"training": {"objective": "ipo", "beta": 0.7, "sft_weight": 1}}, False),
    "steps by the filter": ({"training": {"equal_steps": False}}, False),
    "threshold": ({"consistency": {"threshold": 0.5}}, False),
    "methods": ({"methods": ["rewarded_soup"]}, False),
    "seeds": ({"seeds": [3]}, False),
}


@pytest.mark.parametrize("change, touched", THETA_0_CHANGES.values(), ids=THETA_0_CHANGES.keys())
def test_theta_0_changes_with_what_it_is_trained_by_alone(folder, change, touched):
    def fingerprint(**changes: object) -> str:
        _, plan = planned(folder, **({"sft": {}} | changes))
        return next(p.fingerprint for p in plan if p.name == "theta_0")

    assert (fingerprint(**change) != fingerprint()) == touched


@pytest.mark.parametrize("objective", ["dpo", "ipo", "hinge", "robust", "simpo", "sft"])
def test_reference_log_probs_are_planned_for_objectives_that_have_a_reference(folder, objective):
    _, plan = planned(folder, training={"objective": objective})
    assert any(p.stage == "reference" for p in plan) == (objective not in ("simpo", "sft"))


def test_theta_0_stays_and_goes_with_the_recipe(folder, tmp_path):
    recipe, plan = planned(folder, sft={}, keep={"soups": False, "reference": False})
    workspace = Workspace.open(tmp_path / "run", recipe)
    pretend_made(workspace, [p for p in plan if p.stage not in ("merge", "reference")])
    assert to_make(plan, workspace, recipe) == []
    assert list(removable(recipe, workspace, plan)) == []
    theta_0 = next(p for p in plan if p.stage == "sft")
    assert remove(workspace, workspace.folder(theta_0))
    assert to_make(plan, workspace, recipe) == [theta_0]
    pretend_made(workspace, [theta_0])
    without, plan = planned(folder)
    found = dict(removable(without, workspace, plan))
    assert found[workspace.folder(theta_0)] == "not asked for by the recipe"


def test_what_is_not_made_yet_is_asked_for_by_its_own_command(folder, tmp_path):
    recipe, plan = planned(folder, sft={})
    workspace = Workspace.open(tmp_path / "run", recipe)
    commands = {
        "theta_0": "sft",
        "reference/long": "reference",
        "policies/vc_soup/short/seed-0": "train short",
    }
    for product in plan:
        if product.name in commands:
            with pytest.raises(UserError, match=f"`vcsoup {commands.pop(product.name)}` first"):
                workspace.need(product)
    assert not commands


def test_what_starts_from_theta_0_finds_it_in_the_run_directory(folder, tmp_path):
    recipe, plan = planned(folder, sft={})
    workspace = Workspace.open(tmp_path / "run", recipe)
    pretend_made(workspace, [p for p in plan if p.stage == "sft"])
    sources = {
        p.name: find_theta_0(p, workspace).source
        for p in plan
        if p.name in ("theta_0", "reference/long", "evaluation/base")
    }
    made = str(tmp_path / "run" / "theta_0")
    assert sources == {
        "theta_0": str(folder / "base"),
        "reference/long": made,
        "evaluation/base": made,
    }


def test_training_one_value_takes_theta_0_and_its_own_references_along(folder):
    values = dict.fromkeys(("long", "brief"), RECIPE["values"]["long"])
    _, plan = planned(folder, values=values, sft={})
    due = due_by_command(plan, "train", lambda product: product.value in (None, "brief"))
    assert [p.name for p in due] == [
        "tokens/brief",
        "theta_0",
        "reference/brief",
        *(f"policies/{method}/brief/seed-0" for method in RECIPE["methods"]),
    ]


def test_the_threshold_does_not_touch_the_method_without_a_filter(folder):
    before = {p.name: p.fingerprint for p in planned(folder)[1]}
    _, plan = planned(folder, consistency={"threshold": 0.5})
    for product in plan:
        if product.method == "rewarded_soup":
            assert product.fingerprint == before[product.name]


def test_a_changed_model_or_data_file_changes_what_is_made_from_it(folder):
    before = {p.name: p.fingerprint for p in planned(folder)[1]}
    pairs = folder / "pairs.jsonl"
    text = pairs.read_text()
    try:
        pairs.write_text(text + text.splitlines()[0] + "\n")
        after = {p.name: p.fingerprint for p in planned(folder)[1]}
    finally:
        pairs.write_text(text)
    assert before["pairs/long"] != after["pairs/long"]
    assert before["report"] != after["report"]


def test_soups_that_keep_gives_up_may_go_and_are_never_asked_for(folder, tmp_path):
    recipe, plan = planned(folder, keep={"soups": False})
    workspace = Workspace.open(tmp_path / "run", recipe)
    pretend_made(workspace, [p for p in plan if p.stage not in ("evaluate", "report")])
    half_made = next(p for p in plan if p.stage == "merge")
    assert remove(workspace, workspace.folder(half_made))
    with pytest.raises(KeyboardInterrupt), workspace.publishing(half_made) as draft:
        (draft.output / "model.safetensors").touch()
        raise KeyboardInterrupt
    assert {p.stage for p in to_make(plan, workspace, recipe)} == {"evaluate", "report"}
    gone = list(removable(recipe, workspace, plan))
    assert len(gone) == 9
    assert [path for path, why in gone if why == "draft of what keep gives up"] == [
        workspace.root / "work" / half_made.name
    ]
    assert {reason for _, reason in gone[1:]} == {"keep says it may go (merge)"}
    for path, _ in gone:
        assert remove(workspace, path)
    assert {p.stage for p in to_make(plan, workspace, recipe)} == {"evaluate", "report"}
    kept, _ = planned(folder)
    assert list(removable(kept, workspace, plan)) == []
    assert {p.stage for p in to_make(plan, workspace, kept)} == {"merge", "evaluate", "report"}


@pytest.mark.parametrize("kind", ["writer", "workers"])
def test_what_somebody_has_come_to_work_on_is_not_removed(folder, tmp_path, kind):
    recipe, plan = planned(folder, keep={"soups": False})
    workspace = Workspace.open(tmp_path / "run", recipe)
    pretend_made(workspace, plan)
    path, _ = next(iter(removable(recipe, workspace, plan)))
    name = str(path.relative_to(workspace.root)).replace("/", ".")
    (workspace.root / "locks").mkdir(exist_ok=True)
    with Lock(workspace.root / "locks" / f"{name}.{kind}") as lock:
        assert lock.take(SHARED)
        assert not remove(workspace, path)
        assert (path / "product.json").exists()
    assert remove(workspace, path)
    assert not path.exists()


def test_an_evaluation_without_soups_needs_the_policies(folder, tmp_path):
    recipe, plan = planned(folder, keep={"soups": False})
    evaluation = plan[-2]
    assert {p.stage for p in reads(evaluation, recipe)} == {"read", "train"}
    kept, _ = planned(folder)
    assert reads(evaluation, kept) == list(evaluation.inputs)


def test_reference_log_probs_are_not_removable_while_a_policy_waits_for_them(folder, tmp_path):
    recipe, plan = planned(folder, keep={"reference": False})
    workspace = Workspace.open(tmp_path / "run", recipe)
    pretend_made(
        workspace, [p for p in plan if p.stage in ("read", "score", "filter", "reference")]
    )
    assert list(removable(recipe, workspace, plan)) == []
    pretend_made(workspace, [p for p in plan if p.stage == "train"])
    assert len(list(removable(recipe, workspace, plan))) == 1


def test_a_method_that_is_added_extends_the_reference_and_touches_nothing_that_is_made(
    folder, tmp_path
):
    recipe, plan = planned(folder, methods=["vc_soup"])
    workspace = Workspace.open(tmp_path / "run", recipe)
    pretend_made(workspace, plan)
    write_plan(workspace.root, plan)
    more, larger = planned(folder, methods=["vc_soup", "rewarded_soup"])
    due = to_make(larger, workspace, more)
    reference = next(p for p in due if p.stage == "reference")
    assert {p.method for p in due if p is not reference} == {"rewarded_soup", None}
    assert {p.stage for p in due if p.method is None} == {"reference", "report"}
    assert {p.name for p in reads(reference, more) if p.stage == "filter"} == {
        f"filtered/{method}/{value}"
        for method in ("vc_soup", "rewarded_soup") for value in ("long", "short")
    }  # fmt: skip
    lacking = map(PairsRead.from_text, workspace.uncovered(reference))
    assert {each.pairs for each in lacking} == {
        "filtered/rewarded_soup/long", "filtered/rewarded_soup/short",
    }  # fmt: skip
    reasons = dict(removable(more, workspace, larger))
    assert workspace.folder(reference) not in reasons
    pretend_made(workspace, [reference])
    assert to_make(plan, workspace, recipe) == []
    assert reference not in to_make(larger, workspace, more)
    # As much is known from the record of the plan.
    write_plan(workspace.root, larger)
    recorded = read_plan(workspace.root) or []
    (again,) = (p for p in recorded if p.stage == "reference")
    assert again.covers.keys() == reference.covers.keys() and workspace.is_made(again)
    held_out = planned(folder, methods=["vc_soup"], training={"heldout_pairs": 7})[1]
    wider = next(p for p in held_out if p.stage == "reference")
    assert wider.fingerprint == reference.fingerprint and not workspace.is_made(wider)


def test_reference_log_probs_that_are_not_kept_are_of_what_policies_wait_for_alone(
    folder, tmp_path
):
    recipe, plan = planned(folder, keep={"reference": False})
    workspace = Workspace.open(tmp_path / "run", recipe)
    made = [p for p in plan if p.stage != "reference" and p.method != "random"]
    pretend_made(workspace, made)
    (reference,) = (p for p in to_make(plan, workspace, recipe) if p.stage == "reference")
    assert {each.name for each in reference.covers.values()} == {
        "filtered/random/long", "filtered/random/short",
    }  # fmt: skip
    pretend_made(workspace, [p for p in plan if p.name.startswith("filtered/random")])
    pretend_made(workspace, [reference])
    assert {p.stage for p in to_make(plan, workspace, recipe)} == {
        "train", "merge", "evaluate",
    }  # fmt: skip
    for policy in (p for p in plan if p.stage == "train"):
        (of_its_own,) = policy.inputs_of("reference")
        assert workspace.is_made(of_its_own) == (policy.method == "random")


def test_clean_finds_stale_products_and_finished_checkpoints(folder, tmp_path):
    recipe, plan = planned(folder)
    workspace = Workspace.open(tmp_path / "run", recipe)
    pretend_made(workspace, plan)
    policy = next(p for p in plan if p.stage == "train")
    with workspace.publishing(policy) as draft:
        (draft.scratch / "step-00000004").mkdir()
    recipe, plan = planned(folder, methods=["vc_soup", "rewarded_soup"])
    found = {
        str(p.relative_to(workspace.root)): why for p, why in removable(recipe, workspace, plan)
    }
    assert found.pop(f"work/{policy.name}") == "scratch of a finished product"
    assert found.pop("report") == "made from something else"
    assert found and all("/random/" in name for name in found)
    kept, _ = planned(folder, methods=["vc_soup", "rewarded_soup"], keep={"checkpoints": True})
    assert not any("work" in str(path) for path, _ in removable(kept, workspace, plan))


@pytest.mark.parametrize("content", ["{", "[1]", '{"fingerprint": "a", "covers": 3}'])
def test_a_broken_product_record_is_named(folder, tmp_path, content):
    recipe, plan = planned(folder)
    workspace = Workspace.open(tmp_path / "run", recipe)
    pretend_made(workspace, plan[:1])
    record = workspace.folder(plan[0]) / "product.json"
    record.write_text(content)
    with pytest.raises(UserError, match="product.json: unreadable"):
        workspace.is_made(plan[0])


def test_a_deepspeed_configuration_that_does_not_fit_is_told_before_anything_is_scored(folder):
    (folder / "mine.json").write_text('{"zero_optimization": {"stage": 1}}')
    with pytest.raises(UserError, match=r"mine.json: zero_optimization.stage is 1"):
        planned(folder, training={"deepspeed": "mine.json"})


def test_settings_that_the_objective_does_not_read_make_no_policy_anew(folder):
    def policies(**training: object) -> set[str]:
        _, plan = planned(folder, training=training)
        return {each.fingerprint for each in plan if each.stage == "train"}

    assert policies(simpo_margin=1.0) == policies()
    assert policies(beta=0.2) != policies()
    assert policies(objective="sft", beta=0.2) == policies(objective="sft")
    assert policies(objective="simpo", simpo_margin=1.0) != policies(objective="simpo")
