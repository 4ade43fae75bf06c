"""Shards are joined into files that do not tell how many pairs a shard had, killed or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from test_consistency_stage import write_scored_pairs

from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan, to_make
from vcsoup_dist.pipeline.stages import STAGES, function
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.scores import ScoreShard, join_scores, read_scores, write_scores
from vcsoup_dist.scoring import reading
from vcsoup_dist.workspace import Workspace

FILE_PAIRS = 20
ALL = ("read", "score", "filter")

KILLED = """
import os, signal, sys
from pathlib import Path
from test_scoring_joining import make
from vcsoup_dist.scoring import score_files

calls = 0
def dies_at_call(function):
    def counted(*arguments, **named):
        global calls
        calls += arguments[0].name.endswith(".parquet")
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return counted

if sys.argv[1] == "join":
    score_files.join_scores = dies_at_call(score_files.join_scores)
else:
    Path.unlink = dies_at_call(Path.unlink)
make(Path("."), 3, ("read", "score"))
"""


def make(folder: Path, shard_pairs: int, stages: Sequence[str] = ALL) -> list[str]:
    """Make what is due of a recipe in `folder`; its names."""
    reading.FILE_PAIRS = FILE_PAIRS
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["scoring"] = {"shard_pairs": shard_pairs}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(folder / "recipe.yaml")
    workspace = Workspace.open(folder / "run", loaded)
    plan = make_plan(loaded, Hashes(folder / "run" / "hashes.json"))
    due = [each for each in to_make(plan, workspace, loaded) if each.stage in stages]
    for stage in stages:
        products = [each for each in due if each.stage == stage]
        function(STAGES[stage].make)(loaded, workspace, products)
    return [each.name for each in due]


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FILE_PAIRS", FILE_PAIRS)


def write_world(folder: Path, model: Path) -> Path:
    """A recipe of two values with a reward from columns, one of which has 80 pairs."""
    folder.mkdir(exist_ok=True)
    (folder / "judge.py").write_text("def judge(prompt, response):\n    return 0.0\n")
    write_scored_pairs(folder / "a.jsonl", 0)
    judge = {"callable": "judge.py:judge"}
    values = {
        name: {"reward": {"columns": [f"{column}+", f"{column}-"]}, "judge": judge}
        for name, column in (("a", "u"), ("b", "v"))
    }
    values["a"]["data"] = {"path": "a.jsonl", "heldout_share": 0.2}
    recipe = {"name": "joined", "model": str(model), "values": values, "methods": ["vc_soup"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def content(run: Path) -> dict[str, bytes]:
    """Of all finished files, but for what each product is made from."""
    folders = (run / name for name in ("pairs", "scores", "filtered"))
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(run)): file.read_bytes()
        for file in files
        if file.name != "product.json"
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_model: Path) -> dict[str, bytes]:
    folder = write_world(tmp_path_factory.mktemp("undisturbed"), tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "FILE_PAIRS", FILE_PAIRS)  # `make` sets it for good
        make(folder, 3)
    return content(folder / "run")


def test_no_file_depends_on_the_size_of_the_shards(tmp_path: Path, tiny_model: Path, undisturbed):
    names = {Path(name).name for name in undisturbed if name.startswith("scores/a/a/")}
    files = {f"train-{i:05d}.parquet" for i in range(4)}
    assert names == files | {"manifest.json"}
    for shard_pairs in (1, 7, 512):
        folder = write_world(tmp_path / str(shard_pairs), tiny_model)
        make(folder, shard_pairs)
        assert content(folder / "run") == undisturbed


def test_another_size_of_shards_scores_again_and_reads_nothing_again(
    tmp_path: Path, tiny_model: Path
):
    write_world(tmp_path, tiny_model)
    assert make(tmp_path, 3) == ["pairs/a", "scores/a/a", "scores/a/b", "filtered/vc_soup/a"]
    assert make(tmp_path, 3) == []
    assert make(tmp_path, 4) == ["scores/a/a", "scores/a/b", "filtered/vc_soup/a"]


@pytest.mark.kills
@pytest.mark.processes
def test_killed_while_it_joins_it_resumes_to_the_same_bytes(
    tmp_path: Path, tiny_model: Path, undisturbed
):
    write_world(tmp_path, tiny_model)
    output = tmp_path / "run" / "work" / "scores" / "a" / "a" / "output"
    kept: dict[str, int] = {}
    for step, call in (("join", 1), ("unlink", 2), ("unlink", 9), ("join", 2)):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, step, str(call)],
            cwd=tmp_path,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])},
        )
        assert done.returncode == -signal.SIGKILL
        joined = {file.name: file.stat().st_ino for file in output.glob("train-*.parquet")}
        assert joined.items() >= kept.items()
        kept = joined
    assert kept and list(output.glob("shard-*.parquet"))
    make(tmp_path, 3)
    assert content(tmp_path / "run") == undisturbed
    scores = tmp_path / "run" / "scores" / "a" / "a"
    assert {
        file.name: file.stat().st_ino for file in scores.glob("train-*")
    }.items() >= kept.items()
    assert not list((tmp_path / "run").rglob("shard-*"))


def test_joined_scores_are_those_of_all_pairs_at_once(tmp_path: Path):
    nothing = float("nan")
    parts = [
        ScoreShard(
            ["a", "b"], np.array([1.0, nothing]), np.array([0.5, nothing]), 1, 0, 1, {1: "x"}
        ),
        ScoreShard(["c"], np.array([2.0]), np.array([3.0]), 2, 1, 0),
    ]
    for i, part in enumerate(parts):
        write_scores(tmp_path / f"{i}.parquet", part)
    join_scores(tmp_path / "joined.parquet", [tmp_path / "0.parquet", tmp_path / "1.parquet"])
    found = read_scores(tmp_path / "joined.parquet")
    assert found.ids == ["a", "b", "c"] and found.failures == {1: "x"}
    assert (found.truncated, found.truncated_responses, found.equal_pairs) == (3, 1, 1)
    sides = [1.0, nothing, 2.0], [0.5, nothing, 3.0]
    np.testing.assert_array_equal([found.chosen, found.rejected], sides)
    whole = ScoreShard(found.ids, found.chosen, found.rejected, 3, 1, 1, found.failures)
    write_scores(tmp_path / "whole.parquet", whole)
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "joined.parquet").read_bytes()
    join_scores(tmp_path / "none.parquet", [])
    assert pq.read_metadata(tmp_path / "none.parquet").num_rows == 0
    assert read_scores(tmp_path / "none.parquet").ids == []


def test_held_out_pairs_are_scored_once_a_value_borrows_them_and_nothing_else_is_made_again(
    tmp_path: Path, tiny_model: Path
):
    write_world(tmp_path, tiny_model)
    make(tmp_path, 3)
    before = content(tmp_path / "run")
    assert not [name for name in before if name.startswith("scores") and "heldout" in name]
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["values"]["b"]["data"] = {"pairs_of": ["a"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert make(tmp_path, 3) == ["scores/a/b", "filtered/vc_soup/b"]
    after = content(tmp_path / "run")
    assert after.items() >= before.items()
    scored = {name for name in after if name.startswith("scores")}
    assert scored - before.keys() == {"scores/a/b/heldout.parquet"}
    pairs = pq.read_table(tmp_path / "run/pairs/a/heldout.parquet")
    scores = pq.read_table(tmp_path / "run/scores/a/b/heldout.parquet").to_pylist()
    assert [row["id"] for row in scores] == pairs["id"].to_pylist()
    ordered = pq.read_table(tmp_path / "run/filtered/vc_soup/b/heldout.parquet").to_pylist()
    ties = {row["id"] for row in scores if row["chosen"] == row["rejected"]}
    assert {row["id"] for row in ordered} | ties == set(pairs["id"].to_pylist())
    assert len(ordered) + len(ties) == pairs.num_rows
    swapped = {row["id"] for row in ordered if row["swapped"]}
    assert swapped == {row["id"] for row in scores if row["chosen"] < row["rejected"]}
    # What it has does not go when the value has none any more.
    del recipe["values"]["b"]["data"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert make(tmp_path, 3) == []
