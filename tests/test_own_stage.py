"""A stage of one's own is one row of the table and one package: everything else finds it there."""

from __future__ import annotations

import logging

import pytest
import yaml
from conftest import write_model_files, write_pairs

from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.clean import removable
from vcsoup_dist.pipeline.graph import Graph, make_plan, to_make
from vcsoup_dist.pipeline.run import make_missing
from vcsoup_dist.pipeline.stages import STAGES, Job, Stage
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.slurm_jobs.submit import as_script
from vcsoup_dist.status.show import look, show_status
from vcsoup_dist.workspace import Workspace

VALUE = {"data": {"path": "pairs.jsonl"}, "reward": {"columns": ["right", "wrong"]}}
RECIPE = {
    "name": "own",
    "model": "base",
    "values": {"long": VALUE | {"judge": {"callable": "judge.py:judge"}}},
    "launch": {"slurm": {"count": {"time": "0:10:00"}}},
}


def counts(graph: Graph) -> None:
    """`counts/<dataset>`: how many parquet files a dataset has."""
    for pairs in graph.of("read"):
        graph.add(f"counts/{pairs.dataset}", "count", {}, inputs=(pairs,), dataset=pairs.dataset)


def make(recipe, workspace, products) -> None:
    for product in products:
        (pairs,) = product.inputs_of("read")
        files = list(workspace.need(pairs).glob("*.parquet"))
        with workspace.publishing(product) as draft:
            (draft.output / "files.txt").write_text(f"{len(files)}\n")


@pytest.fixture
def table():
    """The table of stages, with the stage `count` after `read`."""
    row = Stage(
        "count",
        products=f"{__name__}:counts",
        make=f"{__name__}:make",
        command="count",
        job=Job("count"),
        along=("read",),
    )
    before = dict(STAGES)
    STAGES.clear()
    STAGES.update({"read": before["read"], "count": row} | before)
    yield STAGES
    STAGES.clear()
    STAGES.update(before)


@pytest.fixture
def run(tmp_path, table):
    """Recipe, workspace and plan."""
    write_model_files(tmp_path / "base")
    write_pairs(tmp_path / "pairs.jsonl", 20)
    rows = (tmp_path / "pairs.jsonl").read_text().splitlines()
    scored = [f'{row[:-1]}, "right": 2.0, "wrong": 1.0}}\n' for row in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(scored))
    (tmp_path / "judge.py").write_text("def judge(prompt, response):\n    return 0.0\n")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    workspace = Workspace.open(tmp_path / "run", recipe)
    return recipe, workspace, make_plan(recipe, Hashes(tmp_path / "hashes.json"))


def test_its_command_makes_it_and_what_it_reads(run, caplog):
    recipe, workspace, plan = run
    caplog.set_level(logging.INFO)
    assert make_missing(recipe, workspace, plan, "count") == 2
    assert (workspace.root / "counts" / "long" / "files.txt").read_text() == "3\n"
    assert "== count: 1 to make" in caplog.text
    assert make_missing(recipe, workspace, plan, "count") == 0


def test_run_and_status_know_it(run, capsys):
    recipe, workspace, plan = run
    assert "counts/long" in {each.name for each in to_make(plan, workspace, recipe)}
    make_missing(recipe, workspace, plan, "count")
    states = {each.stage: each.state for each in look(recipe, workspace, plan, [])}
    order = list(states)
    assert order.index("count") == order.index("read") + 1
    assert (states["count"], states["score"]) == ("done", "to do")
    show_status(recipe, workspace, plan)
    assert "count" in capsys.readouterr().out


def test_a_missing_input_is_asked_for_by_its_command(run):
    _, workspace, plan = run
    with pytest.raises(Exception, match="run `vcsoup count` first"):
        workspace.need(next(each for each in plan if each.stage == "count"))


def test_clean_removes_it_where_nothing_asks_for_it(run):
    recipe, workspace, plan = run
    make_missing(recipe, workspace, plan, "count")
    assert list(removable(recipe, workspace, plan)) == []
    without = [each for each in plan if each.stage != "count"]
    ((folder, reason),) = removable(recipe, workspace, without)
    assert folder == workspace.root / "counts" / "long"
    assert reason == "not asked for by the recipe"


def test_submit_gives_it_a_job_with_its_options(run, tmp_path):
    recipe, workspace, plan = run
    script = "\n".join(as_script(tmp_path / "recipe.yaml", recipe, workspace, plan, []))
    (line,) = (each for each in script.splitlines() if "--job-name=own-count" in each)
    assert "--time=0:10:00" in line
    assert line.rstrip(")").split("on_one_node.sh ")[1].startswith("count ")
    assert "--dependency=afterok:" in line
