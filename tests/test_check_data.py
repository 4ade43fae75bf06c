"""`vcsoup check` looks at the first rows of every dataset and refuses one without a pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import write_model_files

from vcsoup_dist.check.data import check_files
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe.load import load_recipe

GOOD = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": "b"} for i in range(30)]
NUMBERS = [{**row, "prompt": 3} for row in GOOD]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    write_model_files(folder / "base")
    (folder / "judge.py").write_text("def judge(prompt, response): ...\n")
    return folder


def lines(folder: Path, data: dict, **files) -> list[str]:
    """What check says of a recipe whose only dataset is `data`."""
    for name, rows in files.items():
        path = folder / f"{name.replace('__', '/')}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    value = {"data": data, "reward": {"callable": "judge.py:judge"}}
    (folder / "r.yaml").write_text(
        yaml.safe_dump({"name": "x", "model": "base", "values": {"v": value}})
    )
    recipe = load_recipe(folder / "r.yaml")
    return check_files(recipe, make_plan(recipe, Hashes(folder / "hashes.json")))


def test_it_says_how_many_of_the_first_rows_are_pairs_and_why_others_are_none(folder):
    (said,) = lines(folder, {"path": "p.jsonl"}, p=[*GOOD, {**GOOD[0], "chosen": " "}])
    assert said == (
        "values.v.data (p.jsonl): 30 of the first 31 rows are pairs; 1 cannot be used: "
        "1 empty response (first in row 31)"
    )


def test_data_without_a_pair_is_refused_wherever_it_lies_and_no_bad_rows_are_offered(folder):
    for data, name in (
        ({"path": "n.jsonl"}, r"data \(n.jsonl\)"),
        ({"path": "p.jsonl", "heldout": "n.jsonl"}, r"data.heldout \(n.jsonl\)"),
        ({"path": "d", "heldout": "test"}, r"data.heldout \(d/test.jsonl\)"),
        ({"path": "e"}, r"data \(e/train-2.jsonl\)"),
    ):
        files = {"n": NUMBERS, "p": GOOD, "d__train": GOOD, "d__test": NUMBERS}
        files |= {"e__train-1": GOOD, "e__train-2": NUMBERS}
        with pytest.raises(UserError, match=f"{name}: none of the first 30 rows") as refused:
            lines(folder, data, **files)
        assert "30 `prompt` is a number" in str(refused.value)
        assert "max_bad_rows" not in str(refused.value)


def test_more_bad_rows_than_the_recipe_allows_are_refused_where_all_rows_were_seen(folder):
    with pytest.raises(UserError, match="30 of the first 60 rows are pairs.*max_bad_rows is 0.05"):
        lines(folder, {"path": "p.jsonl"}, p=GOOD + NUMBERS)
    (said,) = lines(folder, {"path": "p.jsonl"}, p=(GOOD + NUMBERS) * 20)
    assert "510 of the first 1,000 rows" in said and "score` refuses" in said


def test_columns_that_are_not_read_are_one_warning_and_an_empty_file_is_refused(folder):
    rows = [{**row, "tools": [{"name": "f"}]} for row in GOOD]
    _, warning = lines(folder, {"path": "p.jsonl"}, p=rows)
    assert warning.startswith("warning: values.v.data (p.jsonl): columns that are not read")
    assert "`tools` (30 rows)" in warning
    with pytest.raises(UserError, match="it holds no rows"):
        lines(folder, {"path": "p.jsonl"}, p=[])
