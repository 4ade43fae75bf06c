"""The stage `score`: what an actor that died, and a run that was killed, leave to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scoring_world import shard_bytes, write_recipe
from test_scoring_classifier import CONFIGS, save_classifier

from vcsoup_dist.identity import Hashes, Located
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.pairs import PairSlice, PairsManifest, cut_rows, read_slice
from vcsoup_dist.records.scores import ScoresManifest, read_scores
from vcsoup_dist.scoring import stage
from vcsoup_dist.scoring.load_reward import load_reward
from vcsoup_dist.scoring.score_files import ScoreFile
from vcsoup_dist.workspace import Workspace

pytestmark = [pytest.mark.ray, pytest.mark.kills, pytest.mark.models]

EXPECTED = {"a": lambda text: len(text.split()), "b": lambda text: -len(text)}


FUNCTIONS = {"a": {"callable": "rewards.py:words"}, "b": {"callable": "rewards.py:letters"}}


def make_scores(recipe: Path) -> Path:
    """Run the first two stages; the run directory."""
    loaded = load_recipe(recipe)
    run = recipe.parent / "run"
    workspace = Workspace.open(run, loaded)
    plan = make_plan(loaded, Hashes(run / "hashes.json"))
    for name, make in (("read", stage.read), ("score", stage.score)):
        due = [p for p in plan if p.stage == name and not workspace.is_made(p)]
        make(loaded, workspace, due)
    return run


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory, tiny_model, ray_address) -> Path:
    """A folder with a run whose actor was killed in the middle of its shards."""
    folder = tmp_path_factory.mktemp("killed-once")
    scoring = {"shard_pairs": 5, "actors": 2, "cpus_per_actor": 0.5}
    recipe = write_recipe(folder, tiny_model, FUNCTIONS, scoring)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray_address)
        make_scores(recipe)
    assert (folder / "died").exists()
    return folder


def test_an_actor_killed_in_mid_run_costs_no_shard_and_doubles_none(killed_once):
    run = killed_once / "run"
    for dataset in "ab":
        manifest = PairsManifest.read(run / "pairs" / dataset)
        rows = {each.file: each.rows for each in manifest.files}
        assert manifest.train > 30
        for value, reward in EXPECTED.items():
            folder = run / "scores" / dataset / value
            summary = ScoresManifest.read(folder)
            assert {each.file: each.rows for each in summary.files} == rows
            assert {file.name for file in folder.glob("*.parquet")} == rows.keys()
            for name, count in rows.items():
                scores = read_scores(folder / name)
                slices = cut_rows(run / "pairs" / dataset / name, count, 512)
                pairs = [pair for each in slices for pair in read_slice(each)]
                assert scores.ids == [pair.id for pair in pairs]
                assert scores.chosen.tolist() == [reward(pair.chosen) for pair in pairs]
                assert scores.rejected.tolist() == [reward(pair.rejected) for pair in pairs]
    assert not [file for file in run.rglob("*") if file.name.startswith(".") and file.is_file()]


def test_only_the_shards_that_a_killed_run_has_not_left_are_scored(
    tmp_path, tiny_model, on_shared_ray, monkeypatch
):
    rewards = {name: {"callable": "rewards.py:words"} for name in "ab"}
    recipe = write_recipe(tmp_path, tiny_model, rewards, {"shard_pairs": 16})

    def stop(file: ScoreFile) -> None:
        raise KeyboardInterrupt

    def score_only() -> dict[str, bytes]:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ScoreFile, "join", stop)
            make_scores(recipe)
        return shard_bytes(tmp_path / "run")

    expected = score_only()
    output = tmp_path / "run" / "work" / "scores" / "a" / "b" / "output"
    (output / "shard-00001.parquet").unlink()
    made = {path.name: path.stat().st_ino for path in output.glob("*.parquet")}
    assert score_only() == expected
    again = {path.name: path.stat().st_ino for path in output.glob("*.parquet")}
    assert again.items() >= made.items() and len(again) == len(made) + 1
    folder = make_scores(recipe) / "scores" / "a" / "b"
    assert {file.name for file in folder.glob("*.parquet")} == {"train-00000.parquet"}


def test_values_of_one_model_are_scored_by_one_pool_in_one_pass(
    tmp_path, tiny_model, on_shared_ray, caplog
):
    save_classifier(tmp_path / "judge", CONFIGS["llama"], pad=0)
    one = {"classifier": "judge"}
    rewards = {"a": one | {"output": 0}, "b": one | {"output": 2, "sign": -1}}
    recipe = write_recipe(tmp_path, tiny_model, rewards, {"shard_pairs": 16})
    with caplog.at_level("INFO", "vcsoup"):
        run = make_scores(recipe)
    assert caplog.text.count("tokens per batch") == 1  # each pool describes its reward once
    pairs = read_slice(PairSlice(run / "pairs" / "a" / "train-00000.parquet", 0, 16))
    texts = [(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)]
    for value in "ab":
        settings = load_recipe(recipe).values[value].reward
        judge = load_reward([settings], Located(str(tmp_path / "judge"), None, None))
        expected = judge.score(judge.encode(texts)).rewards[:, 0]
        scores = read_scores(run / "scores" / "a" / value / "train-00000.parquet")
        np.testing.assert_allclose(scores.chosen[:16], expected[0::2], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(scores.rejected[:16], expected[1::2], rtol=1e-5, atol=1e-5)
