"""What the report says under "Make it again"."""

from __future__ import annotations

import pytest
import yaml

from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.report.facts import commands_for

VALUE = {"data": {"path": "pairs.jsonl"}, "reward": {"callable": "rewards.py:length"}}


@pytest.mark.parametrize(
    ("training", "sft", "stages"),
    [
        ({}, None, ["score", "filter", "reference", "train", "train", "merge"]),
        ({"objective": "simpo"}, None, ["score", "filter", "train", "train", "merge"]),
        ({}, {"steps": 2}, ["score", "filter", "sft", "reference", "train", "train", "merge"]),
    ],
)
def test_the_report_names_every_command_of_the_run(tmp_path, training, sft, stages) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "pairs.jsonl").touch()
    (tmp_path / "rewards.py").touch()
    file = tmp_path / "recipe.yaml"
    recipe = {"name": "again", "model": "base", "values": {"a": VALUE, "b": VALUE}}
    file.write_text(yaml.safe_dump(recipe | {"training": training} | ({"sft": sft} if sft else {})))
    plan = make_plan(load_recipe(file), Hashes(tmp_path / "hashes.json"))
    first, *lines = commands_for(plan[-1])
    assert first.startswith("vcsoup run recipe.yaml")
    assert [line.split()[1] for line in lines] == [*stages, "evaluate", "report"]
