"""The run directory lies beside the recipe, and describes itself wherever it is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from command import run_vcsoup, vcsoup
from conftest import write_model_files, write_pairs

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.find_run import find_run
from vcsoup_dist.pipeline.graph import make_plan, to_make
from vcsoup_dist.pipeline.plan_file import read_plan, write_plan
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.workspace import Workspace

RECIPE = """
name: small
model: ../base
values:
  long:
    data: {path: pairs.jsonl, heldout_share: 0.2}
    reward: {columns: [long_chosen, long_rejected]}
    judge: {callable: "judge.py:never_called"}
seeds: [0, 1]
"""


@pytest.fixture
def world(tmp_path) -> Path:
    """A folder with a model, and one beside it with a recipe and its data."""
    write_model_files(tmp_path / "base")
    project = tmp_path / "project"
    project.mkdir()
    write_pairs(project / "pairs.jsonl", 40)
    rows = [json.loads(line) for line in (project / "pairs.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {f"long_{side}": len(row[side]) for side in ("chosen", "rejected")}
    (project / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project / "judge.py").write_text("def never_called(prompt, response):\n    return 0.0\n")
    (project / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def opened(recipe_file: Path, root: Path) -> Workspace:
    """What a command that makes something leaves of the run directory."""
    recipe = load_recipe(recipe_file)
    workspace = Workspace.open(root, recipe)
    write_plan(root, make_plan(recipe, Hashes(root / "hashes.json")))
    return workspace


def is_made(stage: str, said: str) -> bool:
    return bool(re.search(rf"{stage} +│ done ", said))


@pytest.mark.processes
def test_a_run_is_found_from_everywhere_by_recipe_and_by_run_directory(world, tmp_path):
    project = world / "project"
    vcsoup("score", project / "recipe.yaml", folder=world / "base")
    root = project / "runs" / "small"
    assert (root / "scores" / "long" / "long").is_dir()
    for argument, folder in (
        (project / "recipe.yaml", Path("/")),
        ("recipe.yaml", project),
        (root, Path("/")),
        (root / "recipe.yaml", Path("/")),
        (".", root),
        ("recipe.yaml", root),
    ):
        assert is_made("score", vcsoup("status", argument, folder=folder)), (argument, folder)
    # Moved with all that the recipe names: nothing is to be made anew.
    world.rename(world.with_name("elsewhere"))
    moved = world.with_name("elsewhere") / "project" / "runs" / "small"
    assert "nothing to do" in vcsoup("score", moved, folder=Path("/"))
    assert is_made("score", vcsoup("status", moved, folder=Path("/")))
    world.with_name("elsewhere").rename(world)
    assert "nothing to do" in vcsoup("score", root, folder=Path("/"))  # it notes where it is now
    # Moved alone, and then without the models and data.
    alone = tmp_path / "alone"
    root.rename(alone)
    assert "nothing to do" in vcsoup("score", alone, folder=Path("/"))
    shutil.rmtree(world / "base")
    assert is_made("score", vcsoup("status", alone, folder=Path("/")))
    said = vcsoup("status", project / "recipe.yaml", "-d", alone, folder=Path("/"))
    assert "this is the state as of the last command: model: no such file" in said
    assert is_made("score", said)
    assert "vcsoup: model: no such file" in vcsoup("score", alone, folder=Path("/"), code=2)


def test_relative_paths_of_the_copy_are_those_of_the_original(world, monkeypatch):
    recipe_file = world / "project" / "recipe.yaml"
    root = world / "somewhere" / "run"
    opened(recipe_file, root)
    monkeypatch.chdir("/")
    for argument in (root, root / "recipe.yaml"):
        run = find_run(argument)
        assert (run.root, run.from_copy) == (root, True)
        assert run.recipe.local_path("../base") == world / "project" / "../base"
        plans = [
            make_plan(each, Hashes(root / "h")) for each in (run.recipe, load_recipe(recipe_file))
        ]
        assert [each.fingerprint for each in plans[0]] == [each.fingerprint for each in plans[1]]


def test_another_project_where_the_recipe_was_is_not_taken_for_it(world, tmp_path):
    opened(world / "project" / "recipe.yaml", world / "project" / "runs" / "small")
    other = tmp_path / "other"
    other.mkdir()
    (other / "recipe.yaml").write_text(RECIPE.replace("name: small", "name: other"))
    shutil.move(world / "project" / "runs" / "small", other / "runs" / "small")
    assert find_run(other / "runs" / "small").recipe.file == world / "project" / "recipe.yaml"


def test_an_edited_copy_is_refused_until_the_recipe_is_run_again(world):
    recipe_file, root = world / "project" / "recipe.yaml", world / "project" / "runs" / "small"
    opened(recipe_file, root)
    copy = root / "recipe.yaml"
    copy.write_text(copy.read_text() + "training: {steps: 7}\n")
    for argument in (root, copy):
        with pytest.raises(UserError, match=rf"edited since .* from {recipe_file}; edit that one"):
            find_run(argument)
    own = world / "project" / "mine.yaml"
    shutil.copy(copy, own)
    assert find_run(own).recipe.training.steps == 7
    opened(recipe_file, root)
    assert find_run(root).recipe.training.steps is None


def test_a_run_elsewhere_is_told_instead_of_beginning_anew(world, monkeypatch):
    recipe_file, beside = world / "project" / "recipe.yaml", world / "project" / "runs" / "small"
    monkeypatch.chdir(world)
    here = Path("runs/small")
    opened(recipe_file, here)
    line = rf"^runs/small: a run directory of this recipe, .* give --run-dir runs/small .*{beside}"
    with pytest.raises(UserError, match=line):
        find_run(recipe_file)
    (here / "run.json").unlink()  # as version 0.1.0 left it
    with pytest.raises(UserError, match=line):
        find_run(recipe_file)
    assert find_run(recipe_file, here).root == here
    shutil.move(here, world / "project" / "out")
    opened(recipe_file, world / "project" / "out")
    with pytest.raises(UserError, match=f"give --run-dir {world / 'project' / 'out'} to resume it"):
        find_run(recipe_file)
    opened(recipe_file, beside)
    assert find_run(recipe_file).root == beside


@pytest.mark.processes
def test_values_are_those_of_the_recipe_wherever_its_runs_are(world):
    opened(world / "project" / "recipe.yaml", world / "project" / "mine")
    for argument in ("recipe.yaml", "mine"):
        assert vcsoup("values", argument, folder=world / "project") == "long\n"


def test_a_run_of_another_recipe_of_that_name_is_in_nobodys_way(world, monkeypatch):
    other = world / "other.yaml"
    other.write_text(
        RECIPE.replace("../base", "base")
        .replace("pairs.jsonl", "project/pairs.jsonl")
        .replace("judge.py", "project/judge.py")
    )
    monkeypatch.chdir(world)
    opened(other, Path("runs/small"))
    recipe_file = world / "project" / "recipe.yaml"
    assert find_run(recipe_file).root == world / "project" / "runs" / "small"


def test_a_folder_that_is_no_run_directory_says_so(world):
    with pytest.raises(UserError, match="project: a folder that does not say where its recipe"):
        find_run(world / "project")
    with pytest.raises(UserError, match="base: a folder, but not a run directory"):
        find_run(world / "base")


def test_the_recipe_itself_is_never_overwritten_by_its_copy(world):
    recipe = load_recipe(world / "project" / "recipe.yaml")
    with pytest.raises(UserError, match="the recipe itself lies there"):
        Workspace.open(world / "project", recipe)
    assert (world / "project" / "recipe.yaml").read_text() == RECIPE


@pytest.mark.parametrize("content", ["", "[]", '{"recipe": 3}', "\0"])
def test_a_damaged_record_is_one_line(world, content):
    root = world / "run"
    opened(world / "project" / "recipe.yaml", root)
    (root / "run.json").write_text(content)
    with pytest.raises(UserError, match="run.json: unreadable .*; remove it"):
        find_run(root)
    (root / "plan.json").write_text('{"format": 2, "products": [{"name": 3}]}')
    with pytest.raises(UserError, match="plan.json: unreadable .*; remove it"):
        read_plan(root)


def test_a_recorded_plan_is_the_plan(world):
    recipe_file, root = world / "project" / "recipe.yaml", world / "run"
    workspace = opened(recipe_file, root)
    recipe = load_recipe(recipe_file)
    plan, recorded = make_plan(recipe, Hashes(root / "hashes.json")), read_plan(root)
    assert recorded is not None
    assert [(each.name, each.fingerprint) for each in recorded] == [
        (each.name, each.fingerprint) for each in plan
    ]
    due = [
        [each.name for each in to_make(products, workspace, recipe)]
        for products in (plan, recorded)
    ]
    assert due[0] == due[1] != []


@pytest.mark.processes
def test_what_slurm_refuses_leaves_no_folder(world, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run_vcsoup("submit", "recipe.yaml", folder=world / "project", PATH=str(empty))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "sbatch" in done.stderr
    assert not (world / "project" / "runs").exists()


@pytest.mark.processes
def test_a_key_set_on_the_command_line_is_as_an_edited_recipe(world):
    project = world / "project"
    vcsoup("score", "recipe.yaml", "--set", "scoring.shard_pairs=7", folder=project)
    root = project / "runs" / "small"
    assert "shard_pairs: 7" in (root / "recipe.yaml").read_text()
    assert is_made("score", vcsoup("status", root, folder=project))
    assert not is_made("score", vcsoup("status", "recipe.yaml", folder=project))
    (project / "recipe.yaml").write_text(RECIPE + "scoring: {shard_pairs: 7}\n")
    assert "nothing to do" in vcsoup("score", "recipe.yaml", folder=project)
    said = vcsoup("status", root, "--set", "seeds=[2]", folder=project, code=2)
    assert "--set changes a recipe, not the copy in a run directory" in said


@pytest.mark.processes
@pytest.mark.parametrize("command", ["status", "run", "score", "check", "clean", "submit"])
def test_a_run_directory_of_another_version_is_refused_in_one_line(world, command):
    root = world / "old"
    recipe = load_recipe(world / "project" / "recipe.yaml")
    Workspace.open(root, recipe)
    (root / "plan.json").write_text('[{"name": "pairs/long", "stage": "read"}]')
    before = sorted(root.rglob("*"))
    done = vcsoup(command, "project/recipe.yaml", "-d", root, folder=world, code=2)
    assert "a run directory of an earlier version of vcsoup_dist" in done
    assert len(done.splitlines()) == 1
    assert sorted(root.rglob("*")) == before
