"""Every mistake in a recipe is one line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe.load import load_recipe, sections_of
from vcsoup_dist.slurm_jobs.site import load_site

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = [file for file in sorted(FOLDER.glob("*.yaml")) if "\nmodel: " in file.read_text()]

GOOD = {
    "name": "x",
    "model": "some/model",
    "values": {
        "helpful": {"data": {"path": "a.jsonl"}, "reward": {"classifier": "some/reward"}},
        "harmless": {"data": {"path": "b.jsonl"}, "reward": {"callable": "a.b:c"}},
    },
}


def changed(*keys: str, to: object) -> dict:
    """GOOD with one key set; the path is made where it is not there."""
    recipe = yaml.safe_load(yaml.safe_dump(GOOD))
    section = recipe
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    section[keys[-1]] = to
    return recipe


MISTAKES = {
    "unknown key": (
        changed("training", "learning_rat", to=1),
        "training.learning_rat: unknown key; did you mean `learning_rate`?",
    ),
    "key of another section": (
        changed("evaluation", "objective", to="dpo"),
        "evaluation.objective: unknown key; did you mean `training.objective`?",
    ),
    "smoothing of an objective without": (
        changed("training", to={"objective": "hinge", "label_smoothing": 0.1}),
        "training: label_smoothing: `hinge` has none; `dpo` and `robust` do",
    ),
    "sft added to sft": (
        changed("training", to={"objective": "sft", "sft_weight": 0.1}),
        "training: sft_weight: `sft` has nothing to add it to",
    ),
    "decay of more than 1": (
        changed("training", "adam_betas", to=[2, 0.9]),
        "training.adam_betas.0: .*less than 1",
    ),
    "infinite": (changed("launch", "hang_minutes", to=float("inf")), "launch.hang_minutes: .*inf"),
    "wrong type": (changed("training", "steps", to="many"), "training.steps: .*'many'"),
    "out of range": (changed("consistency", "threshold", to=1.5), "consistency.threshold: .*1.5"),
    "missing key": ({"name": "x", "values": GOOD["values"]}, "model: this key is required"),
    "reward of no kind": (
        changed("values", "helpful", "reward", to={"sign": 1}),
        "values.helpful.reward: needs one of the keys `classifier`, `callable` or `columns`",
    ),
    "policy without data": (
        changed("values", "harmless", to={"reward": {"callable": "a.b:c"}})
        | {"policies": ["harmless"]},
        "policies: `harmless` has no data to train on",
    ),
    "policy of no value": (
        GOOD | {"policies": ["honest"]},
        "policies: no value is called `honest`",
    ),
    "ratio not given": (changed("consistency", "policy", to="ratio"), "needs the key `ratio`"),
    "grid that does not divide 1": (
        changed("soup", "grid", to=0.3),
        "soup.grid: 0.3 does not divide",
    ),
    "grid too large": (changed("soup", "grid", to=0.001), "soup.grid: 1001 soups of 2 policies"),
    "weights of another length": (
        changed("soup", "weights", to=[[0.2, 0.3, 0.5]]),
        r"soup.weights\[0\] has 3 numbers for 2",
    ),
    "the same weights twice": (
        changed("soup", "weights", to=[[0.5, 0.5], [0.5, 0.5]]),
        "soup.weights lists the same weights twice",
    ),
    "weights off the simplex": (
        changed("soup", "weights", to=[[0.6, 0.6]]),
        r"soup: weights\[0\] must sum to 1, got \[0.6, 0.6\]; with `box: \[0, 1\]` theta_0",
    ),
    "weights outside of the box": (
        changed("soup", to={"weights": [[1.2, 0.6]], "box": [0, 1]}),
        r"soup: weights\[0\] must lie in \[0, 1\], got \[1.2, 0.6\]",
    ),
    "weights of theta_0": (
        changed("soup", to={"weights": [[0, 0]], "box": [0, 1]}),
        r"soup: weights\[0\] is theta_0",
    ),
    "a box without inside": (changed("soup", to={"box": [1, 1]}), r"box: .* got \[1.0, 1.0\]"),
    "a box without bounds": (
        changed("soup", to={"box": []}),
        r"box: needs a lower .* got \[\]",
    ),
    "a box that is too far out": (changed("soup", to={"box": [0, 80]}), r"soup.box.1: .*80"),
    "a box that the grid does not divide": (
        changed("soup", to={"box": [0, 1.1]}),
        "soup.grid: 0.25 does not divide 1.1",
    ),
    "too many points in the box": (
        changed("soup", to={"box": [0, 1], "grid": 0.1}),
        "soup.grid: 120 soups of 2 policies are more than soup.max_soups = 100",
    ),
    "columns cannot judge": (
        changed("values", "helpful", "reward", to={"columns": ["a", "b"]}),
        "values.helpful.judge",
    ),
    "pairs of no value": (
        changed("values", "helpful", "data", to={"pairs_of": ["honest"]}),
        "values.helpful.data.pairs_of: `honest`",
    ),
    "random without vc_soup": (
        GOOD | {"methods": ["random"]},
        "methods.random: copies the size of `vc_soup`",
    ),
    "the same method twice": (GOOD | {"methods": ["vc_soup", "vc_soup"]}, "twice"),
    "data from nowhere": (
        changed("values", "helpful", "data", to={}),
        "values.helpful.data: give either",
    ),
    "an option of sbatch by another name": (
        changed("launch", "slurm", "train", to={"ntasks_per_node": 8}),
        "launch.slurm.train: `ntasks_per_node`: give .* `ntasks-per-node`",
    ),
    "an option that submit decides": (
        changed("launch", "slurm", "train", to={"array": 8}),
        "launch.slurm.train: `array` cannot be set",
    ),
    "a time that YAML reads as a number": (
        changed("launch", "slurm", "train", to={"time": 43200}),
        "launch.slurm.train: `time`: put it in quotes",
    ),
    "reward template without slots": (
        changed("values", "helpful", "reward", "text", to="{prompt}"),
        "values.helpful.reward.text",
    ),
}


@pytest.mark.parametrize("recipe, line", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_with_the_keys_path(tmp_path, recipe, line):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=line) as caught:
        load_recipe(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")


def test_all_mistakes_are_told_at_once(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(GOOD | {"sead": 1, "training": {"beta": -1}}))
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_what_is_no_yaml_mapping_is_refused(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="recipe.yaml: "):
        load_recipe(file)


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml: cannot read"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_environment_variables_are_filled_in_and_missing_ones_named(tmp_path, monkeypatch):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(GOOD | {"model": "${TEST_MODELS}/base"}))
    monkeypatch.setenv("TEST_MODELS", "/models")
    assert load_recipe(file).model == "/models/base"
    monkeypatch.delenv("TEST_MODELS")
    with pytest.raises(UserError, match=r"\$\{TEST_MODELS\} is not set"):
        load_recipe(file)


def test_the_readmes_recipe_is_valid(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    file = tmp_path / "recipe.yaml"
    file.write_text(readme.split("```yaml\n")[1].split("```")[0])
    assert load_recipe(file).trained_values() == ["helpful", "concise"]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_every_example_is_a_valid_recipe(file, monkeypatch):
    for name in ("VCSOUP_DATA", "VCSOUP_DEMO", "VCSOUP_MODELS"):
        monkeypatch.setenv(name, "/somewhere")
    assert load_recipe(file).trained_values()


def test_every_key_is_documented_where_it_is_defined():
    sections = {section for _, section in sections_of()}
    assert len(sections) > 10
    undocumented = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert undocumented == []


def test_the_example_of_a_site_file_is_valid(monkeypatch):
    monkeypatch.setenv("VCSOUP_SITE", str(FOLDER / "site.yaml"))
    assert load_site().sbatch["account"] == "alignment"
