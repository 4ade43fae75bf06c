"""A recipe's `data`, from the YAML to the pairs on disk."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import write_model_files, write_pairs
from huggingface_hub import constants

from vcsoup_dist.check.cost import estimate
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.scoring.stage import read
from vcsoup_dist.workspace import Workspace


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    write_model_files(folder / "base")
    (folder / "judge.py").write_text("def judge(prompt, response): ...\n")
    return folder


def planned(folder: Path, data: dict, columns: str = "helpfulness"):
    reward = {"columns": [f"chosen_{columns}", f"rejected_{columns}"]}
    judge = {"callable": "judge.py:judge"}
    file = folder / "recipe.yaml"
    values = {"kind": {"data": data, "reward": reward, "judge": judge}}
    file.write_text(yaml.safe_dump({"name": "x", "model": "base", "values": values}))
    recipe = load_recipe(file)
    return recipe, make_plan(recipe, Hashes(folder / "hashes.json"))


def pairs_of(recipe, plan, root: Path) -> tuple[dict, list[dict]]:
    """The manifest and the training pairs of a recipe's only dataset."""
    workspace = Workspace.open(root, recipe)
    products = [product for product in plan if product.stage == "read"]
    read(recipe, workspace, products)
    made = workspace.need(products[0])
    pairs = pq.read_table(made / "train-00000.parquet").to_pylist()
    return json.loads((made / "manifest.json").read_text()), pairs


def test_rated_rows_of_a_packed_file_become_pairs_that_need_no_reward_model(folder, tmp_path):
    rows = [
        {"prompt": f"q{i // 2}", "response": f"r{i}", "helpfulness": i % 3, "verbosity": 1}
        for i in range(60)
    ]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (folder / "rated.jsonl.gz").write_bytes(packed)
    recipe, plan = planned(folder, {"path": "rated.jsonl.gz", "preferred_by": "helpfulness"})
    assert estimate(recipe, Workspace(tmp_path / "run"), plan).pairs is None
    manifest, pairs = pairs_of(recipe, plan, tmp_path / "run")
    assert (manifest["rows"], manifest["joined"]) == (60, 30)
    assert manifest["train"] + manifest["heldout"] == 30
    assert all(pair["chosen_helpfulness"] > pair["rejected_helpfulness"] for pair in pairs)


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.parquet"])
def test_the_cost_counts_the_pairs_of_every_kind_of_file(folder, tmp_path, name):
    write_pairs(folder / "p.jsonl", 23)
    text = (folder / "p.jsonl").read_bytes()
    (folder / "p.jsonl.gz").write_bytes(gzip.compress(text))
    table = pa.Table.from_pylist([json.loads(line) for line in text.splitlines()])
    pq.write_table(table, folder / "p.parquet")
    recipe, plan = planned(folder, {"path": name})
    assert estimate(recipe, Workspace(tmp_path / "run"), plan).pairs == 23


def test_a_folder_keeps_its_heldout_pairs_in_another_split(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / ".cache")
    (folder / "splits").mkdir()
    for split, count in (("train", 5), ("test", 2)):
        rows = [
            {
                "prompt": f"{split} {i}",
                "chosen": "a",
                "rejected": "b",
                "chosen_x": 1,
                "rejected_x": 0,
            }
            for i in range(count)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "splits" / f"{split}.jsonl").write_text(text)
    recipe, plan = planned(folder, {"path": "splits", "heldout": "test"}, columns="x")
    manifest, pairs = pairs_of(recipe, plan, tmp_path / "run")
    assert (manifest["train"], manifest["heldout"]) == (5, 2)
    assert [pair["prompt"][0]["content"] for pair in pairs] == [f"train {i}" for i in range(5)]


def test_a_bare_name_of_held_out_data_is_a_split_even_next_to_a_folder_of_that_name(folder):
    for name in ("dataset", "validation"):
        (folder / name).mkdir(exist_ok=True)
    write_pairs(folder / "p.jsonl", 3)

    def heldout(path: str, heldout: str) -> tuple[str | None, str | None]:
        _, plan = planned(folder, {"path": path, "heldout": heldout})
        read = next(product for product in plan if product.stage == "read")
        source = read.sources.get("heldout")
        return read.made_from["heldout"], source and source.source

    assert heldout("dataset", "validation") == ("validation", None)
    assert heldout("dataset", "./validation") == (None, str(folder / "validation"))
    assert heldout("dataset", "p.jsonl") == (None, str(folder / "p.jsonl"))
    assert heldout("p.jsonl", "validation") == (None, str(folder / "validation"))


def test_a_hub_dataset_is_read_at_the_commit_that_its_revision_means(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "datasets--some--pairs" / "refs"
    refs.mkdir(parents=True)
    for name, commit in (("main", "0123"), ("v1", "4567"), ("v1.0", "4567")):
        (refs / name).write_text(commit)

    def read(**data: str):
        plan = planned(folder, {"path": "some/pairs", **data})[1]
        return next(product for product in plan if product.stage == "read")

    assert read().sources["data"].revision == "0123"
    assert read(revision="v1").sources["data"].revision == "4567"
    assert read(revision="v1").fingerprint == read(revision="v1.0").fingerprint
    assert read(revision="v1").fingerprint != read().fingerprint


MISTAKES = {
    "trl decides": ({"path": "p.jsonl", "format": "trl", "preferred_by": "x"}, "format `trl` says"),
    "pku's names": (
        {"path": "p.jsonl", "format": "pku", "preferred_by": "helpful"},
        "format `pku` offers better, safer; not `helpful`",
    ),
    "pairs of others": ({"pairs_of": ["kind"], "preferred_by": "x"}, "takes other values' pairs"),
    "missing packed file": ({"path": "data/none.jsonl.zst"}, "path: no such file: data/none"),
    "another kind": ({"path": "judge.py"}, "path: judge.py is not a .jsonl, .*; convert it"),
    "missing heldout": ({"path": "p.jsonl", "heldout": "test"}, "heldout: no such file: test"),
    "missing heldout path": (
        {"path": "base", "heldout": "./none"},
        "heldout: no such file: ./none",
    ),
    "revision of a file": (
        {"path": "p.jsonl", "revision": "main"},
        "data.revision: p.jsonl is a local path",
    ),
    "revision of others": ({"pairs_of": ["kind"], "revision": "x"}, "revision: `pairs_of` takes"),
}


@pytest.mark.parametrize(("data", "line"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_data_is_one_line_before_any_work(folder, data, line):
    write_pairs(folder / "p.jsonl", 3)
    with pytest.raises(UserError, match=line) as refused:
        planned(folder, data)
    assert "\n" not in str(refused.value)
