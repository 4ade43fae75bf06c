"""Methods of a comparison: instances with options, and a method of one's own in one file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import write_model_files, write_pairs

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.methods import methods_of
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.keep_rule import KeepRule
from vcsoup_dist.workspace import Product

VALUE = {"data": {"path": "pairs.jsonl"}, "reward": {"callable": "rewards.py:length"}}
RECIPE = {
    "name": "x", "model": "base", "values": {"long": VALUE, "short": VALUE}, "soup": {"grid": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    write_model_files(folder / "base")
    write_pairs(folder / "pairs.jsonl", 5)
    (folder / "rewards.py").write_text("def length(p, r): ...\n")
    return folder


def loaded(folder: Path, **changes: object) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE | changes, sort_keys=False))
    return load_recipe(file)


def planned(folder: Path, **changes: object) -> list[Product]:
    return make_plan(loaded(folder, **changes), Hashes(folder / "hashes.json"))


def rules(recipe: Recipe) -> dict[str, KeepRule]:
    return {name: each.keep_rule(recipe) for name, each in methods_of(recipe).items()}  # type: ignore[attr-defined]


INSTANCES = {
    "vc_soup": {},
    "strict": {"kind": "vc_soup", "threshold": 0.707},
    "best_half": {"kind": "vc_soup", "ratio": 0.5, "min_norm": 1},
    "drawn": {"kind": "vc_soup", "rule": "random", "ratio": 0.25},
    "all_positive": None,
    "rewarded_soup": {},
    "random": {},
    "random_strict": {"kind": "random", "size_of": "best_half"},
}


def test_one_kind_stands_several_times_each_with_its_options(folder):
    assert rules(loaded(folder, methods=INSTANCES)) == {
        "vc_soup": KeepRule("threshold", threshold=0.0),
        "strict": KeepRule("threshold", threshold=0.707),
        "best_half": KeepRule("ratio", ratio=0.5, min_norm=1),
        "drawn": KeepRule("random", ratio=0.25),
        "all_positive": KeepRule("all_positive"),
        "rewarded_soup": KeepRule("all"),
        "random": KeepRule("as_many_as"),
        "random_strict": KeepRule("as_many_as", min_norm=1),
    }


def test_what_an_instance_leaves_open_is_as_consistency_says(folder):
    consistency = {"rule": "ratio", "ratio": 0.3, "min_norm": 0.5}
    recipe = loaded(folder, consistency=consistency, methods={"vc_soup": {}, "all_positive": {}})
    assert rules(recipe) == {
        "vc_soup": KeepRule("ratio", ratio=0.3, min_norm=0.5),
        "all_positive": KeepRule("all_positive", min_norm=0.5),
    }


def test_a_plain_list_means_the_kinds_with_their_defaults(folder):
    listed = planned(folder, methods=["vc_soup", "random"])
    named = planned(folder, methods={"vc_soup": {"kind": "vc_soup"}, "random": None})
    assert [each.fingerprint for each in listed] == [each.fingerprint for each in named]


def test_an_instance_changes_no_product_of_another(folder):
    before = {each.name: each.fingerprint for each in planned(folder, methods=["vc_soup"])}
    methods = {"vc_soup": {}, "strict": {"kind": "vc_soup", "threshold": 0.707}}
    after = {each.name: each.fingerprint for each in planned(folder, methods=methods)}
    changed = {name for name, each in before.items() if after[name] != each}
    assert changed == {"report"}
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"strict"}


def test_a_random_subset_is_made_after_the_set_whose_size_it_copies(folder):
    plan = planned(
        folder,
        methods={"random": {"size_of": "strict"}, "strict": {"kind": "vc_soup", "threshold": 0.5}},
    )
    product = next(each for each in plan if each.name == "filtered/random/long")
    assert [each.name for each in product.inputs_of("filter")] == ["filtered/strict/long"]
    names = [each.name for each in plan]
    assert names.index("filtered/strict/long") < names.index("filtered/random/long")


MISTAKES = {
    "a kind that is not there": (
        {"a": {}},
        "methods.a: give it a `kind`, one of all_positive, .*vc_soup",
    ),
    "an option of another kind": ({"random": {"ratio": 1}}, "methods.random.ratio: unknown key"),
    "nothing to copy": (["random"], "methods.random: copies the size of `vc_soup`"),
    "another to copy": (
        {"vc_soup": {}, "random": {"size_of": "strict"}},
        "methods.random: copies the size of `strict`",
    ),
    "a share without its size": (
        {"vc_soup": {"rule": "ratio"}},
        "methods.vc_soup: the rule `ratio` needs the key `ratio`",
    ),
    "two rules": (
        {"vc_soup": {"threshold": 0.5, "ratio": 0.5}},
        "methods.vc_soup: threshold: belongs to the rule `threshold` alone",
    ),
    "the same twice": (["vc_soup", "vc_soup"], "methods: .*twice"),
    "a number": ({"vc_soup": 3}, "methods.vc_soup: needs options"),
    "theta_0's name": ({"base": {"kind": "vc_soup"}}, "methods.base: .*theta_0"),
    "none": ({}, "methods: "),
}


@pytest.mark.parametrize("methods, line", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_with_its_place(folder, methods, line):
    with pytest.raises(UserError, match=line) as refused:
        loaded(folder, methods=methods)
    assert len(str(refused.value).splitlines()) == 1
    assert "line " in str(refused.value)


REWEIGHTED = {
    "another objective": (
        {"training": {"objective": "ipo"}}, "relabelled: needs training.objective `dpo`, not `ipo`",
    ),
    "smoothed labels": (
        {"training": {"label_smoothing": 0.1}}, "take training.label_smoothing out",
    ),
    "added likelihood": ({"training": {"sft_weight": 1}}, "take training.sft_weight out"),
    "weighted pairs": (
        {"training": {"pair_weights": "consistency"}}, "take training.pair_weights out",
    ),
    "no weight for modpo's value": (
        {"reweighting": {"weights": [[0.5, 0.5], [0, 1]]}},
        r"modpo: divides by the weight of `long`: reweighting.weights\[1\] gives it 0",
    ),
    "no such value": ({"reweighting": {"modpo_value": "x"}}, "modpo_value: `x` is no value"),
    "off the simplex": ({"reweighting": {"weights": [[0.5, 0.6]]}}, "sum to 1"),
    "too few weights": ({"reweighting": {"weights": [[1.0]]}}, "has 1 numbers for 2 policies"),
    "a step that does not divide": ({"reweighting": {"grid": 0.3}}, "0.3 does not divide 1"),
}  # fmt: skip


@pytest.mark.parametrize("changes, line", REWEIGHTED.values(), ids=REWEIGHTED.keys())
def test_what_a_reweighting_method_cannot_do_is_one_line(folder, changes, line):
    with pytest.raises(UserError, match=line) as refused:
        loaded(folder, methods=["relabelled", "modpo"], **changes)
    assert len(str(refused.value).splitlines()) == 1


def trade_offs(recipe: Recipe, name: str) -> list[tuple[float, ...]]:
    return [each.weights for each in methods_of(recipe)[name].candidates(recipe)]


def test_a_total_budget_trains_corners_first_then_the_centre(folder):
    methods = {
        "all": {"kind": "scalarised"},
        "few": {"kind": "scalarised", "budget": "total"},
        "modpo": {"budget": "total"},
    }
    recipe = loaded(folder, methods=methods)
    assert trade_offs(recipe, "all") == [(i / 4, 1 - i / 4) for i in range(5)]
    assert trade_offs(recipe, "few") == [(0, 1), (1, 0)]
    assert trade_offs(recipe, "modpo") == [(0.5, 0.5), (1, 0)]
    (note,) = methods_of(recipe)["modpo"].notes(recipe)
    assert note.startswith("2 of 5 trade-offs are trained: long-0.50_short-0.50, ")
    assert "weight of `long` is at least 0.1" in note


def test_settings_of_an_instance_change_its_policies_alone(folder):
    before = {each.name: each.fingerprint for each in planned(folder, methods=["scalarised"])}
    methods = {"scalarised": {}, "tuned": {"kind": "scalarised", "beta": 0.3}}
    after = planned(folder, methods=methods)
    assert all(before.get(p.name, p.fingerprint) == p.fingerprint for p in after[:-1])
    tuned = next(each for each in after if each.method == "tuned" and each.stage == "train")
    assert tuned.made_from["training"]["beta"] == 0.3
    assert [each.name for each in tuned.inputs][0] == "union"


OWN = '''
"""A policy per trade-off, each evaluated as it is."""

from vcsoup_dist.methods.method import Candidate, Method, PairSet, Policy, soup_weights
from vcsoup_dist.records.keep_rule import KeepRule


class PerLambda(Method):
    """All pairs of all values."""

    at_most: int = 99
    """Policies."""

    def pairs(self, recipe):
        return [PairSet(value, value, KeepRule("all")) for value in recipe.trained_values()]

    def policies(self, recipe):
        sets = tuple(recipe.trained_values())
        return [
            Policy("-".join(f"{w:.2f}" for w in weights), sets, None)
            for weights in soup_weights(recipe)[: self.at_most]
        ]

    def candidates(self, recipe):
        pairs = zip(soup_weights(recipe), self.policies(recipe))
        return [Candidate(weights, (policy.name,), is_soup=False) for weights, policy in pairs]


METHOD = PerLambda
'''


@pytest.mark.processes
def test_a_method_of_ones_own_is_one_file(folder, tmp_path):
    (tmp_path / "per_lambda.py").write_text(OWN)
    loaded(folder, methods={"vc_soup": {}, "grid": {"kind": "vc_soup"}})
    text = (folder / "recipe.yaml").read_text().replace("kind: vc_soup", "kind: per_lambda")
    (folder / "own.yaml").write_text(text + "    at_most: 2\n" if text.endswith("\n") else text)
    code = f"""
import importlib.util, sys
spec = importlib.util.find_spec("vcsoup_dist.methods")
import types
package = types.ModuleType("vcsoup_dist.methods")
package.__path__ = [*spec.submodule_search_locations, {str(tmp_path)!r}]
package.__spec__ = spec
sys.modules["vcsoup_dist.methods"] = package
spec.loader.exec_module(package)
from pathlib import Path
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe.load import load_recipe
recipe = load_recipe(Path({str(folder / "own.yaml")!r}))
for each in make_plan(recipe, Hashes(Path({str(tmp_path / "hashes")!r}))):
    if each.method == "grid":
        print(each.name, *(one.name for one in each.inputs if one.stage in ("filter", "train")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    both = "filtered/grid/long filtered/grid/short"
    assert [line for line in done.stdout.splitlines() if not line.startswith("filtered")] == [
        f"policies/grid/0.00-1.00/seed-0 {both}",
        f"policies/grid/0.50-0.50/seed-0 {both}",
        "evaluation/grid/seed-0/long-0.00_short-1.00 policies/grid/0.00-1.00/seed-0",
        "evaluation/grid/seed-0/long-0.50_short-0.50 policies/grid/0.50-0.50/seed-0",
    ]
