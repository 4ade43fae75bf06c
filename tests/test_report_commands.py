"""What the report says under "Make it again"."""

from __future__ import annotations

import pytest

from vcsoup_dist.recipe import Recipe
from vcsoup_dist.report.stage import _commands

VALUE = {"data": {"path": "pairs.jsonl"}, "reward": {"callable": "rewards:length"}}


@pytest.mark.parametrize(
    ("training", "warmup", "stages"),
    [
        ({}, None, ["score", "filter", "reference", "train", "train", "merge"]),
        ({"objective": "simpo"}, None, ["score", "filter", "train", "train", "merge"]),
        ({}, {"steps": 2}, ["score", "filter", "warmup", "reference", "train", "train", "merge"]),
    ],
)
def test_the_report_names_every_command_of_the_run(training, warmup, stages) -> None:
    recipe = Recipe.model_validate(
        {"name": "again", "model": "base", "values": {"a": VALUE, "b": VALUE}}
        | {"training": training, "warmup": warmup}
    )
    first, *lines = _commands(recipe)
    assert first.startswith("vcsoup run recipe.yaml")
    assert [line.split()[1] for line in lines] == [*stages, "evaluate", "report"]
