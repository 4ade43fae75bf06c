"""Keys of a recipe under their former names."""

from __future__ import annotations

import logging

import pytest

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import renamed
from vcsoup_dist.recipe.load import load_recipe

OLD = """
name: old
model: some/model
values:
  a: {data: {path: p.jsonl}, reward: {callable: "r.py:f"}}
consistency: {policy: ratio, ratio: 0.5}
warmup: {steps: 3}
training: {warmup: 0.2}
"""


@pytest.fixture(autouse=True)
def said_anew():
    renamed._say.cache_clear()


def test_they_are_read_and_a_line_says_the_new_name(tmp_path, caplog):
    file = tmp_path / "recipe.yaml"
    file.write_text(OLD)
    recipe = load_recipe(file)
    assert recipe.consistency.rule == "ratio"
    assert recipe.sft is not None and recipe.sft.steps == 3
    assert recipe.training.warmup_ratio == 0.2
    load_recipe(file)
    assert [each.message.removeprefix(f"{file}: ") for each in caplog.records] == [
        "line 6: `consistency.policy` is now `consistency.rule`",
        "line 8: `training.warmup` is now `training.warmup_ratio`",
        "line 7: `warmup` is now `sft`",
    ]
    assert all(each.levelno == logging.WARNING for each in caplog.records)


def test_on_the_command_line_too(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(OLD.replace("warmup: {steps: 3}\ntraining: {warmup: 0.2}\n", ""))
    assert load_recipe(file, ["training.warmup=0.3"]).training.warmup_ratio == 0.3


def test_a_mistake_in_one_has_the_line_where_it_stands(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(OLD.replace("steps: 3", "steps: 0"))
    with pytest.raises(UserError, match=r"line 7: sft\.steps: .*greater than or equal to 1"):
        load_recipe(file)


def test_both_names_at_once_are_refused(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(OLD + "sft: {steps: 4}\n")
    with pytest.raises(UserError, match="line 7: `warmup` is now `sft`; give one of them"):
        load_recipe(file)
