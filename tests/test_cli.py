"""The `vcsoup` command: what it says, what it imports, how it fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import vcsoup
from conftest import write_model_files, write_pairs

pytestmark = pytest.mark.processes

RECIPE = """
name: small
model: base
values:
  long:
    data: {path: pairs.jsonl}
    reward: {callable: "rewards.py:longer"}
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    write_model_files(tmp_path / "base")
    write_pairs(tmp_path / "pairs.jsonl", 20)
    (tmp_path / "rewards.py").write_text(
        "def longer(prompt, response):\n    return len(response)\n"
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def imported_by(statement: str, folder: Path) -> set[str]:
    code = f"""
import sys, json
try:
    {statement}
except SystemExit:
    pass
print("\\n" + json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


HEAVY = {"torch", "ray", "deepspeed", "transformers", "matplotlib", "datasets"}


def test_help_imports_nothing_heavy_and_check_only_what_knows_models_and_memory(folder):
    run = "sys.argv = ['vcsoup', *{}]; from vcsoup_dist.cli.main import main; main()"
    assert not HEAVY & imported_by("import vcsoup_dist", folder)
    assert not HEAVY & imported_by(run.format(["--help"]), folder)
    checked = imported_by(run.format(["check", "recipe.yaml"]), folder)
    assert HEAVY & checked <= {"torch", "deepspeed", "transformers"}


def test_each_stage_imports_only_its_own_frameworks(folder):
    merge = imported_by("import vcsoup_dist.souping.stage", folder)
    assert not {"torch", "ray", "deepspeed", "transformers"} & merge
    train = imported_by("import vcsoup_dist.training.rank, vcsoup_dist.training.loop", folder)
    assert "torch" in train and "ray" not in train
    modules = "launch.pools, vcsoup_dist.scoring.workload, vcsoup_dist.scoring.classifier"
    score = imported_by(f"import vcsoup_dist.{modules}", folder)
    assert "ray" in score and "deepspeed" not in score


COMMANDS = [
    "check",
    "status",
    "score",
    "filter",
    "sft",
    "reference",
    "train",
    "merge",
    "evaluate",
    "report",
    "run",
    "compare",
    "clean",
    "demo",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_has_an_example(command, tmp_path):
    assert f"Example: vcsoup {command}" in vcsoup(command, "--help", folder=tmp_path)


def test_check_prints_the_plan_and_its_cost_and_writes_nothing(folder):
    printed = vcsoup("check", "recipe.yaml", folder=folder)
    assert "policies/vc_soup/long/seed-0" in printed
    assert "pairs (held-out ones included)   20" in printed
    assert "disk free" in printed
    assert not (folder / "runs").exists()


def test_status_marks_every_product(folder):
    printed = vcsoup("status", "recipe.yaml", "--products", folder=folder)
    assert "missing     pairs/long" in printed
    vcsoup("score", "recipe.yaml", folder=folder)
    printed = vcsoup("status", "recipe.yaml", "--products", folder=folder)
    assert "made        scores/long/long" in printed
    assert "missing     filtered/vc_soup/long" in printed
    again = vcsoup("score", "recipe.yaml", folder=folder)
    assert "nothing to do" in again


def test_a_stage_that_the_recipe_does_not_have_is_nothing_to_do(folder):
    printed = vcsoup("sft", "recipe.yaml", folder=folder)
    assert "nothing to do: no sft in this recipe" in printed
    (folder / "recipe.yaml").write_text(RECIPE + "training: {objective: sft}\n")
    printed = vcsoup("reference", "recipe.yaml", folder=folder)
    assert "nothing to do: no reference in this recipe" in printed


@pytest.mark.parametrize("command", ["train", "run"])
def test_the_exit_code_of_a_stop_is_in_the_help(command, tmp_path):
    assert "75 " in vcsoup(command, "--help", folder=tmp_path)


MISTAKES = {
    "no recipe": (["check", "nowhere.yaml"], "vcsoup: nowhere.yaml: cannot read the recipe"),
    "value of no name": (["train", "brave", "recipe.yaml"], "vcsoup: `brave` is not a value"),
    "input not made": (
        ["filter", "recipe.yaml"],
        "is not made yet, or not by this recipe: run `vcsoup score` first",
    ),
}


@pytest.mark.parametrize("arguments, line", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_a_line_and_exit_code_2(folder, arguments, line):
    printed = vcsoup(*arguments, folder=folder, code=2)
    assert line in printed


def test_check_says_what_a_local_files_rows_lack(folder):
    rated = {"prompt": "q", "response": "r", "helpfulness": 1}
    (folder / "pairs.jsonl").write_text(json.dumps(rated) + "\n")
    printed = vcsoup("check", "recipe.yaml", folder=folder, code=2)
    assert "the key `preferred_by` is missing; the data offers: helpfulness" in printed
    (folder / "pairs.jsonl").write_text(json.dumps({"question": "q", "chosen": "a"}) + "\n")
    printed = vcsoup("check", "recipe.yaml", folder=folder, code=2)
    assert "no column `prompt`; their columns are: question, chosen" in printed


def test_a_missing_model_or_data_file_is_named_by_its_key(folder):
    (folder / "pairs.jsonl").unlink()
    printed = vcsoup("check", "recipe.yaml", folder=folder, code=2)
    assert "vcsoup: values.long.data.path: no such file: pairs.jsonl" in printed
    (folder / "base" / "config.json").unlink()
    printed = vcsoup("check", "recipe.yaml", folder=folder, code=2)
    assert "vcsoup: model: base is not a model directory (it has no config.json)" in printed


def test_a_second_interrupt_while_python_shuts_down_ends_with_130_too(tmp_path):
    code = """
import atexit, sys, time
from vcsoup_dist.cli import main as cli

def slow_end():
    print("ending", flush=True)
    time.sleep(0.3)

atexit.register(slow_end)

def interrupted():
    raise KeyboardInterrupt

cli.app = interrupted
cli.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "vcsoup: interrupted; run the same command to resume\n"
