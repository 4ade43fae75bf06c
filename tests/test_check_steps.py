"""Steps and passes that `vcsoup check` shows, against what the trainer would do."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from conftest import write_model_files, write_pairs

from vcsoup_dist.check.steps import (
    LEAST_MOVE,
    Steps,
    farthest_move,
    plan_steps,
    step_warnings,
    steps_table,
)
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe import Training
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.filter_report import FilterReport, PairCounts, RuleComparison
from vcsoup_dist.records.keep_rule import KeepRule
from vcsoup_dist.records.pairs import PairsManifest
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.training.batches import step_pairs
from vcsoup_dist.training.schedule import learning_rate
from vcsoup_dist.workspace import Product, Workspace

RECIPE = {
    "name": "small",
    "model": "base",
    "values": {
        "long": {"data": {"path": "pairs.jsonl"}, "reward": {"callable": "rewards.py:longer"}}
    },
    "methods": ["vc_soup"],
}


def trained(pairs: int) -> dict:
    return {
        "version": TrainingSummary.VERSION,
        "steps": 1,
        "pairs": pairs,
        "pairs_left_out": {},
        "passes": 1.0,
        "last_step": {"loss": 0.5},
        "heldout": None,
    }


def filtered(kept: int, usable: int) -> dict:
    counts = PairCounts(usable, kept, {}, 0, 0, 0, {}, {})
    report = FilterReport(
        method="vc_soup",
        rule=KeepRule("threshold", 0.0),
        size_of=None,
        value="long",
        values=["long"],
        datasets=["long"],
        normalisation="zscore",
        scope="dataset",
        counts=counts,
        heldout=counts,
        scale={},
        equal_pairs={},
        correlation=[],
        conflicts=[],
        comparison=RuleComparison(usable, usable, [], []),
        files=[],
    )
    return {"version": FilterReport.VERSION, **asdict(report)}


PAIRS = {"version": PairsManifest.VERSION, "rows": 37, "train": 37, "heldout": 0, "files": []}


class World:
    """A recipe's folder, with products made as far as a test wants them."""

    def __init__(self, folder: Path, **changes: object) -> None:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes))
        self.recipe = load_recipe(folder / "recipe.yaml")
        self.plan = make_plan(self.recipe, Hashes(folder / "hashes.json"))
        self.workspace = Workspace(folder / "run")

    def made(self, stage: str, name: str, content: object) -> None:
        """Put a finished product of that stage there, with one file."""
        for product in self.plan:
            if product.stage == stage:
                self._put(product, name, content)

    def _put(self, product: Product, name: str, content: object) -> None:
        folder = self.workspace.folder(product)
        folder.mkdir(parents=True)
        (folder / name).write_text(json.dumps(content))
        (folder / "product.json").write_text(json.dumps({"fingerprint": product.fingerprint}))

    def steps(self) -> list[Steps]:
        return plan_steps(self.recipe, self.workspace, self.plan)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model_files(tmp_path / "base")
    write_pairs(tmp_path / "pairs.jsonl", 40)
    (tmp_path / "rewards.py").write_text("def longer(prompt, response): ...\n")
    return tmp_path


def test_the_defaults_on_few_pairs_are_one_step_and_warned_of(folder):
    (policy,) = found = World(folder).steps()
    assert policy.row() == (
        "vc_soup/long", "at most 40", "at most 1", "at least 1.6", "5e-07"
    )  # fmt: skip
    (warning,) = step_warnings(found)
    assert warning.startswith("policies/vc_soup/long: will hardly move: at most 1 step at")


def test_each_stage_that_is_made_makes_the_counts_exact(folder):
    training = {"pairs_per_step": 4, "learning_rate": 1e-3, "epochs": 2}
    world = World(folder, training=training)
    world.made("read", "manifest.json", PAIRS)
    assert world.steps()[0].row()[1:4] == ("at most 37", "at most 19", "at least 2")
    world.made("filter", "report.json", filtered(21, usable=33))
    assert world.steps()[0].row()[1:4] == ("at most 21", "17", "at least 3.24")
    world.made("train", "training.json", trained(pairs=18))
    (policy,) = found = world.steps()
    assert policy.row()[1:4] == ("18", "17", "3.78")
    # The trainer's own choice of pairs takes each as often.
    taken = Counter(i for step in range(17) for i in step_pairs(18, 4, 0, step))
    assert sum(taken.values()) / 18 == pytest.approx(3.78, abs=0.01)
    assert not [line for line in step_warnings(found) if "hardly" in line]


def test_without_equal_steps_the_pairs_that_are_left_decide(folder):
    training = {"pairs_per_step": 4, "equal_steps": False}
    world = World(folder, training=training)
    world.made("read", "manifest.json", PAIRS)
    world.made("filter", "report.json", filtered(21, usable=33))
    assert world.steps()[0].row()[1:3] == ("at most 21", "at most 6")
    world.made("train", "training.json", trained(pairs=18))
    assert world.steps()[0].row()[1:4] == ("18", "5", "1.11")


def test_a_policy_of_several_pair_sets_counts_them_together(folder):
    """As of a method of one's own."""
    values = dict.fromkeys(("long", "kind"), RECIPE["values"]["long"])
    world = World(folder, values=values, training={"pairs_per_step": 4})
    policies = [each for each in world.plan if each.stage == "train"]
    both = replace(policies[0], inputs=(*policies[0].inputs, *policies[1].inputs))
    plan = [*world.plan, replace(both, name="policies/vc_soup/both/seed-0")]

    def row() -> tuple[str, ...]:
        return plan_steps(world.recipe, world.workspace, plan)[-1].row()

    assert row()[:3] == ("vc_soup/both", "at most 80", "at most 20")
    world.made("filter", "report.json", filtered(21, usable=33))
    assert row()[1:3] == ("at most 42", "17")


def test_trade_offs_that_take_the_same_share_a_row(folder):
    values = dict.fromkeys(("long", "kind"), RECIPE["values"]["long"])
    found = World(folder, values=values, methods=["rewarded_soup", "relabelled"]).steps()
    table = steps_table(found)
    assert list(table.columns[0].cells) == [
        "rewarded_soup/kind", "rewarded_soup/long", "relabelled, 5 trade-offs",
    ]  # fmt: skip
    assert len(found) == 2 + 5


def test_theta_0s_sft_has_a_row_of_its_own_settings(folder):
    world = World(folder, sft={"learning_rate": 1e-3, "steps": 7, "pairs_per_step": 8})
    assert world.steps()[0].row() == ("theta_0", "at most 40", "7", "at least 1.4", "0.001")


def test_a_limit_is_counted(folder):
    data = {"path": "pairs.jsonl", "limit": 10}
    world = World(folder, values={"long": RECIPE["values"]["long"] | {"data": data}})
    assert world.steps()[0].pairs == 10


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_farthest_move_is_the_sum_of_the_trainers_rates(schedule):
    training = Training(schedule=schedule, learning_rate=1e-4, warmup_ratio=0.2)
    exact = sum(learning_rate(step, 50, training) for step in range(50))
    assert farthest_move(training, 50) == pytest.approx(exact)
    exact = sum(learning_rate(step, 25_000, training) for step in range(25_000))
    assert farthest_move(training, 25_000) == pytest.approx(exact, rel=1e-3)


def test_the_demos_recipe_moves_and_the_default_rate_does_from_some_60_steps():
    assert farthest_move(Training(learning_rate=2e-4), 20) > LEAST_MOVE
    assert farthest_move(Training(), 55) < LEAST_MOVE < farthest_move(Training(), 65)
