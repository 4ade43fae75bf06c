"""What a recipe's YAML says is what is read, or a line says why not."""

from __future__ import annotations

import json

import pytest
import yaml

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.slurm_jobs.site import load_site
from vcsoup_dist.souping.mergekit_config import read_mergekit_config
from vcsoup_dist.souping.options import MergeOptions

HEAD = """name: x
model: some/model
values:
  helpful:
    data: {path: a.jsonl}
    reward: {classifier: some/reward}
  harmless:
    data: {path: b.jsonl}
    reward: {callable: "a.b:c"}
"""  # nine lines


@pytest.fixture
def read(tmp_path):
    def load(text: str | bytes, overrides=()):
        file = tmp_path / "recipe.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(file, overrides)

    return load


def refused(read, text: str | bytes, overrides=()) -> list[str]:
    """The lines that refuse a recipe, without the file's name."""
    with pytest.raises(UserError) as caught:
        read(text, overrides)
    return [line.partition("recipe.yaml: ")[2] or line for line in str(caught.value).splitlines()]


DOUBLED = {
    "key": (
        "training:\n  learning_rate: 1e-6\n  steps: 4\n  learning_rate: 5e-7\n",
        "line 13: training.learning_rate: the key is given twice, first in line 11",
    ),
    "section": (
        "training: {steps: 1}\nsoup: {grid: 1}\ntraining: {beta: 1}\n",
        "line 12: training: the key is given twice, first in line 10",
    ),
    "quoted": ('"name": y\n', "line 10: name: the key is given twice, first in line 1"),
    "in one line": (
        "training: {steps: 1, steps: 1}\n",
        "line 10: training.steps: the key is given twice, first in line 10",
    ),
    "merge key": (
        "training: {<<: {steps: 1}, <<: {beta: 2}}\n",
        "line 10: training.<<: the key is given twice, first in line 10",
    ),
    "in what is merged": (
        "training:\n  <<:\n    steps: 1\n    steps: 2\n",
        "line 13: training.steps: the key is given twice, first in line 12",
    ),
}


@pytest.mark.parametrize("text, line", DOUBLED.values(), ids=DOUBLED.keys())
def test_a_key_given_twice_is_refused_with_both_lines(read, text, line):
    (said,) = refused(read, HEAD + text)
    assert said.startswith(line)


def test_a_value_given_twice_is_refused(read):
    (said,) = refused(read, HEAD.replace("harmless", "helpful"))
    assert said.startswith("line 7: values.helpful: the key is given twice, first in line 4")


def test_doubled_keys_are_refused_in_json_a_site_file_and_mergekits_yaml(
    read, tmp_path, monkeypatch
):
    (said,) = refused(read, '{"name": "x",\n "name": "y"}')
    assert said.startswith("line 2: name: the key is given twice, first in line 1")
    site = tmp_path / "site.yaml"
    site.write_text("sbatch:\n  partition: a\n  account: b\n  partition: c\n")
    monkeypatch.setenv("VCSOUP_SITE", str(site))
    with pytest.raises(UserError, match="line 4: sbatch.partition: .* twice, first in line 2"):
        load_site()
    merge = tmp_path / "mk.yaml"
    merge.write_text(
        "merge_method: linear\nmodels:\n  - model: a\n    parameters:\n"
        "      weight: 0.3\n      weight: 0.7\n"
    )
    with pytest.raises(UserError, match=r"line 6: models.0.parameters.weight: .* twice"):
        read_mergekit_config(merge, MergeOptions())


def test_own_keys_go_before_merged_ones(read):
    recipe = read(HEAD + "training: &t {steps: 3, epochs: 2}\nsft: {<<: *t, epochs: 4}\n")
    assert (recipe.training.steps, recipe.training.epochs) == (3, 2)
    assert recipe.sft is not None
    assert (recipe.sft.steps, recipe.sft.epochs) == (3, 4)


NUMBERS = {
    "steps: yes": "steps: needs a number (got yes, which is yes or no to YAML)",
    "steps: true": "steps: needs a number (got true, which is yes or no to YAML)",
    "learning_rate: on": "learning_rate: needs a number (got on, which is yes or no to YAML)",
    "adam_betas: [no, 0.5]": "adam_betas.0: needs a number (got no, which is yes or no to YAML)",
    'steps: "20"': "steps: needs a whole number, without quotes (got '20')",
    "steps: 20.0": "steps: needs a whole number (got 20.0; write 20)",
    "steps: 20.5": "steps: input should be a valid integer, got a number with a fractional part",
    "steps: 010": 'steps: `010` is 8 to YAML; if it is text, put it in quotes: "010"',
    "steps: -010": "steps: `-010` is -8 to YAML",
    "steps: 17:04": "steps: `17:04` is 1024 to YAML",
    "beta: 1:30.5": "beta: `1:30.5` is another number to YAML",
    "steps: 2026-11-28": "steps: `2026-11-28` is a date to YAML; put it in quotes",
    "beta: .inf": "beta: input should be a finite number (got .inf)",
    "beta: .nan": "beta: input should be a finite number (got .nan)",
    "beta: 1e400": "beta: input should be a finite number (got '1e400')",
    "beta: null": "beta: no value is given; needs a valid number, or leave the key out",
    "steps: 99999999999999999999": "steps: needs a number of at most 2^63 - 1",
    f"steps: {'9' * 5000}": "steps: `999999",
    "steps: !!int 'a'": "steps: `a` cannot be read as a number",
    "steps: !!int '010'": "steps: `010` is 8 to YAML",
    "steps: !!python/object/apply:os.getcwd []": "steps: the tag `tag:yaml.org,2002:python/",
    "steps: !!binary aGk=": "steps: the tag `tag:yaml.org,2002:binary` is not supported",
}


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_is_the_one_that_is_written_or_refused(read, key):
    (said,) = refused(read, f"{HEAD}training:\n  {key}\n")
    assert said.startswith(f"line 11: training.{NUMBERS[key]}")
    assert len(said) < 200


@pytest.mark.parametrize("written", ["1e-6", '"1e-6"', "1.0e-6", "0.000001", "${TEST_RATE}"])
def test_a_learning_rate_is_read_however_it_is_written(read, written, monkeypatch):
    monkeypatch.setenv("TEST_RATE", "1e-6")
    recipe = read(f"{HEAD}training: {{learning_rate: {written}}}\n")
    assert recipe.training.learning_rate == 1e-6


@pytest.mark.parametrize("written, number", [("1_000", 1000), ("0x10", 16), ("+7", 7)])
def test_other_ways_to_write_a_whole_number_are_read(read, written, number):
    assert read(f"{HEAD}training: {{steps: {written}}}\n").training.steps == number


TEXTS = {
    "no": "`no` is yes or no to YAML",
    "on": "`on` is yes or no to YAML",
    "1": "`1` is a number to YAML",
    "1.5": "`1.5` is a number to YAML",
    "0x1f": "`0x1f` is a number to YAML",
    "2026-11-28": "`2026-11-28` is a date to YAML",
    "010": "`010` is 8 to YAML",
    "12:30": "`12:30` is 750 to YAML",
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_yaml_takes_for_something_else_is_to_be_quoted(read, text):
    for recipe, line in (
        (HEAD.replace("name: x", f"name: {text}"), "line 1: name: "),
        (HEAD.replace("a.jsonl", text), "line 5: values.helpful.data.path: "),
    ):
        (said,) = refused(read, recipe)
        assert said.startswith(line + TEXTS[text])
        assert f'put it in quotes: "{text}"' in said
    (said,) = refused(read, HEAD.replace("helpful:", f"{text}:"))
    assert f"line 4: values: the key `{text}` is " in said
    assert f'put it in quotes: "{text}"' in said


def test_quoted_names_are_names(read):
    recipe = read(HEAD.replace("helpful:", '"no":').replace("name: x", 'name: "010"'))
    assert (recipe.name, list(recipe.values)) == ("010", ["no", "harmless"])


@pytest.mark.parametrize("key", ["null", "~", "? [a]", "? {a: 1}"])
def test_a_key_that_is_no_text_is_refused(read, key):
    (said,) = refused(read, HEAD.replace("helpful:", f"{key}:"))
    assert said.startswith("line 4: values: ")


def test_a_section_without_keys_is_told_what_it_needs(read):
    (said,) = refused(read, HEAD + "training:\n")
    assert said.startswith("line 10: training: no value is given; needs keys of its own")
    (said,) = refused(read, HEAD + "training: 3\n")
    assert said == "line 10: training: needs keys of its own, below it or in {} (got '3')"


UNKNOWN = {
    "threshhold: 0.3": "line 10: threshhold: unknown key; did you mean `consistency.threshold` or",
    "soup: {dtype: bf16}": "line 10: soup.dtype: unknown key; did you mean `training.dtype` or ",
    "training: {learning_rat: 1}": "line 10: training.learning_rat: unknown key; did you mean"
    " `learning_rate`?",
    "zzzzqq: 1": "line 10: zzzzqq: unknown key",
    '"a\\nb": 1': "line 10: a\\nb: unknown key",
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_an_unknown_key_is_told_with_the_section_it_may_belong_to(read, key):
    (said,) = refused(read, f"{HEAD}{key}\n")
    assert said.startswith(UNKNOWN[key])


def test_many_unknown_keys_are_cut_short(read):
    said = refused(read, HEAD + "training:\n" + "".join(f"  k{i}: 1\n" for i in range(3000)))
    assert len(said) == 21
    assert said[-1] == "and 2980 more"


@pytest.mark.parametrize(
    "recipe",
    [
        HEAD.replace("helpful:", "my-value:"),
        HEAD.replace("name: x", "name: -x"),
        HEAD.replace("a.b:c", "a.b"),
        HEAD.replace("some/reward", "some/reward, head: 1a"),
    ],
)
def test_a_bad_name_is_told_in_words(read, recipe):
    (said,) = refused(read, recipe)
    assert said.startswith("line ")
    assert not set("^\\[$") & set(said)


FILES = {
    "empty": (b"", "empty; a recipe is a YAML mapping of keys"),
    "comments": (b"# a\n", "empty; a recipe is a YAML mapping of keys"),
    "list": (b"\n- a\n", "line 2: a list; a recipe is a YAML mapping of keys"),
    "text": (b"hello", "line 1: a single value; a recipe is a YAML mapping of keys"),
    "two documents": (f"{HEAD}---\n{HEAD}".encode(), "line 10: a second document begins at `---`"),
    "tab": (f"{HEAD}soup:\n\tgrid: 1\n".encode(), "line 11: not YAML: a tab; indent with spaces"),
    "UTF-16": (HEAD.encode("utf-16"), "UTF-16; save it as UTF-8"),
    "latin-1": (f"{HEAD}# é\n".encode("latin-1"), "line 10: not UTF-8 (byte 0xe9); save it as"),
    "zero byte": (f"{HEAD}\0".encode(), "line 10: not YAML: the character U+0000 is not allowed"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n",
        "a Git LFS pointer, not the recipe itself; run `git lfs pull`",
    ),
    "large": (b"#" * 600_000, "more than 512 KiB; that is not a recipe"),
    "deep": (b"[" * 5000, "nested too deeply for a recipe"),
    "anchor of itself": (f"{HEAD}soup: &a {{x: *a}}\n".encode(), "line 10: soup.x: more than"),
    "unclosed": (f"{HEAD}soup: {{grid: [\n".encode(), "line 11: not YAML: "),
    "no such anchor": (f"{HEAD}soup: *a\n".encode(), "line 10: not YAML: found undefined alias"),
}


@pytest.mark.parametrize("content, line", FILES.values(), ids=FILES.keys())
def test_a_file_that_is_no_recipe_says_what_it_is(read, content, line):
    (said,) = refused(read, content)
    assert said.startswith(line)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + HEAD.encode(),
        HEAD.replace("\n", "\r\n").encode(),
        f"---\n{HEAD}...\n".encode(),
        f"%YAML 1.1\n---\n{HEAD}".encode(),
        json.dumps(yaml.safe_load(HEAD)).encode(),
    ],
    ids=["BOM", "CRLF", "document marks", "directive", "JSON"],
)
def test_what_other_programs_write_is_read(read, content):
    assert read(content).trained_values() == ["helpful", "harmless"]


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(UserError, match=": a folder; a recipe is a YAML file"):
        load_recipe(tmp_path)
    with pytest.raises(UserError, match="nowhere.yaml: cannot read the recipe: No such file"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_a_variable_is_taken_as_it_is(read, monkeypatch):
    monkeypatch.setenv("TEST_FOLDER", "/data: of #2/café")
    monkeypatch.setenv("TEST_STEPS", "20")
    text = HEAD.replace("some/model", "${TEST_FOLDER}/m # ${TEST_NOT_SET}")
    recipe = read(text + "training: {steps: ${TEST_STEPS}}\n")
    assert (recipe.model, recipe.training.steps) == ("/data: of #2/café/m", 20)
    monkeypatch.setenv("TEST_STEPS", "010")
    (said,) = refused(read, HEAD + "training: {steps: ${TEST_STEPS}}\n")
    assert said.startswith("line 10: training.steps: `010` is 8 to YAML")
    (said,) = refused(read, HEAD + "training:\n  steps: ${TEST_NOT_SET}\n")
    assert said.startswith("line 11: training.steps: ${TEST_NOT_SET} is not set in the environment")


def test_a_weight_of_mergekits_yaml_is_no_truth_value(tmp_path):
    (tmp_path / "a").mkdir()
    file = tmp_path / "mk.yaml"
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: %s}}]\n"
    file.write_text(text % "yes")
    with pytest.raises(UserError, match="weight is True; only one number"):
        read_mergekit_config(file, MergeOptions())
    file.write_text(text % "2")
    assert read_mergekit_config(file, MergeOptions())[1] == [(1.0,)]


def test_a_key_set_on_the_command_line_is_as_if_it_stood_in_the_file(read):
    text = HEAD + "training: {steps: 5, beta: 0.2}\n"
    recipe = read(text, ["training.steps=20", "seeds=[0, 1]", "values.helpful.reward.sign=-1"])
    assert (recipe.training.steps, recipe.training.beta, recipe.seeds) == (20, 0.2, [0, 1])
    assert recipe.values["helpful"].reward.sign == -1
    assert recipe == read(
        HEAD.replace("some/reward", "some/reward, sign: -1")
        + "training: {steps: 20, beta: 0.2}\nseeds: [0, 1]\n"
    )


SETTINGS = {
    "training.steps=yes": "--set training.steps: training.steps: needs a number (got yes",
    "training.steps=010": "--set training.steps: training.steps: `010` is 8 to YAML",
    "training.stepz=3": "--set training.stepz: training.stepz: unknown key; did you mean `steps`?",
    "training.steps": "--set training.steps: give KEY=VALUE",
    "=3": "--set =3: give KEY=VALUE",
    "name.x=3": "--set name.x: `name` is not a section of keys",
    "training={steps: 1, steps: 2}": "--set training: training.steps: the key is given twice",
    "training.steps=[": "--set training.steps: line 1: not YAML",
    "name=no": "--set name: name: `no` is yes or no to YAML",
}


@pytest.mark.parametrize("override", SETTINGS)
def test_a_mistake_on_the_command_line_is_told_as_one(read, override):
    (said,) = refused(read, HEAD, [override])
    assert said.startswith(SETTINGS[override])
