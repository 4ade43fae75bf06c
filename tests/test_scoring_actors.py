"""Pools of real Ray actors: those that die cost time and not data, and what fails is named."""

from __future__ import annotations

import json
import logging
import platform
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from scoring_world import shard_bytes, workload_of, write_recipe
from test_scoring_classifier import CONFIGS, save_classifier

from vcsoup_dist.errors import UserError
from vcsoup_dist.evaluation.workload import evaluation_workload
from vcsoup_dist.identity import Hashes, Located
from vcsoup_dist.launch import pools, worker_pool
from vcsoup_dist.launch.pools import run_pools
from vcsoup_dist.launch.ray_cluster import ray_cluster
from vcsoup_dist.launch.worker_pool import WorkerPool
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe import ActorPool, Evaluation, Launch
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.pairs import HELD_OUT, PairSlice, PairsManifest, cut_rows, read_slice
from vcsoup_dist.records.scores import ScoresManifest, join_scores, read_scores, summarise
from vcsoup_dist.scoring import stage
from vcsoup_dist.scoring.load_reward import load_reward
from vcsoup_dist.scoring.score_files import ScoreFile
from vcsoup_dist.scoring.tasks import ShardTask
from vcsoup_dist.scoring.workload import ScoringWorkload
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
        rows = {each.file: each.rows for each in manifest.files} | {HELD_OUT: manifest.heldout}
        assert manifest.train > 30
        for value, reward in EXPECTED.items():
            folder = run / "scores" / dataset / value
            summary = ScoresManifest.read(folder)
            assert {each.file: each.rows for each in (*summary.files, summary.heldout)} == rows
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
    assert {file.name for file in folder.glob("*.parquet")} == {"train-00000.parquet", HELD_OUT}


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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray of this process, whose actors start in less time than those of the shared one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_cluster(Launch(), tmp_path_factory.mktemp("run")):
            yield


def score(*workloads: ScoringWorkload) -> list[ScoringWorkload]:
    return list(run_pools(workloads, lambda pairs: None))


def test_several_pools_run_although_the_machine_has_cpus_for_one_at_a_time(tmp_path, cluster):
    actors = ActorPool(actors=4, cpus_per_actor=2)
    workloads = [workload_of(tmp_path / name, "words", actors=actors) for name in "ab"]
    progress = []
    assert list(run_pools(workloads, progress.append)) == workloads
    assert progress == [3, 3]
    for name in "ab":
        assert pq.read_table(tmp_path / name / "shard-00000.parquet").num_rows == 3


def test_fewer_actors_work_where_the_cluster_has_no_cpus_for_all(tmp_path, cluster, caplog):
    actors = ActorPool(actors=3, cpus_per_actor=2)
    workload = workload_of(tmp_path, "words", [["a"]] * 5, actors)
    with caplog.at_level("WARNING", "vcsoup"):
        assert score(workload) == [workload]
    assert "resources for 1 of 3 actors" in caplog.text and len(shard_bytes(tmp_path)) == 5


HANGS = """
def hangs(prompt, response):
    if response == "stuck":
        (HERE / "pid").write_text(str(os.getpid()))
        while not (HERE / "open").exists():
            time.sleep(0.01)
    return len(response)
"""


def test_a_shard_that_does_not_come_back_is_named_with_its_process(
    tmp_path, cluster, monkeypatch, caplog
):
    monkeypatch.setattr(pools, "QUIET", 0.1)
    actors = ActorPool(actors=2, cpus_per_actor=0.1)
    workload = workload_of(tmp_path, "hangs", [["a"], ["stuck"], ["b"]], actors)
    workload.patience = 1.0
    with open(tmp_path / "rewards.py", "a") as code:
        code.write(HANGS)
    lines = []

    class Open(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "shard-00001.parquet: no result" in record.getMessage():
                lines.append(record.getMessage())
                (tmp_path / "open").touch()

    tell = Open()
    logging.getLogger("vcsoup").addHandler(tell)
    try:
        assert score(workload) == [workload]
    finally:
        logging.getLogger("vcsoup").removeHandler(tell)
    pid = (tmp_path / "pid").read_text()
    assert f"from process {pid} on {platform.node()}; see its line by `py-spy dump`" in lines[0]


@pytest.mark.parametrize(
    ("actors", "message"),
    [
        (
            {"cpus_per_actor": 1000},
            "scoring.cpus_per_actor: no machine .* has 1000 CPU for one actor.*min_workers",
        ),
        ({"resources_per_actor": {"tpu": 2}}, r"scoring.resources_per_actor: .* 1 CPU and 2 tpu"),
    ],
)
def test_an_actor_that_fits_on_no_machine_is_refused(tmp_path, cluster, actors, message):
    with pytest.raises(UserError, match=message):
        score(workload_of(tmp_path, "words", actors=ActorPool(**actors)))


def test_a_shard_that_kills_its_actors_is_set_aside_and_costs_no_other(
    tmp_path, cluster, monkeypatch
):
    monkeypatch.setattr(worker_pool, "ATTEMPTS", 2)
    # Others are encoded while it kills: none of them may take its blame.
    shards = [["a", "b"]] * 3 + [["c", "poison"]] + [["d"]] * 3 + [["poison"]] + [["e"]] * 2
    workload = workload_of(tmp_path, "deadly", shards, ActorPool(actors=2, cpus_per_actor=0.1))
    message = "2 of 10 shards are set aside.*scores/a/b: .* its actor died 2 times"
    with pytest.raises(UserError, match=message) as raised:
        score(workload)
    assert str(workload.quarantine) in str(raised.value)
    listed = json.loads(workload.quarantine.read_text())
    assert sorted(each["shard"] for each in listed) == [
        "scores/a/b: shard-00003.parquet",
        "scores/a/b: shard-00007.parquet",
    ]
    kept = {f"shard-{i:05d}.parquet" for i in range(10)} - {
        each["shard"].split()[-1] for each in listed
    }
    assert set(shard_bytes(tmp_path)) == kept


def test_a_shard_whose_pairs_cannot_be_read_is_set_aside_with_its_error(tmp_path, cluster):
    workload = workload_of(tmp_path, "words", [["a"]] * 4)
    workload.tasks[2].pairs.file.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="1 of 4 shards are set aside.*00002.parquet: ArrowInvalid"):
        score(workload)
    assert len(shard_bytes(tmp_path)) == 3
    details = json.loads(workload.quarantine.read_text())[0]["details"]
    assert "in read_slice" in details and "\x1b" not in details


def test_a_pool_is_given_up_when_nearly_every_shard_kills(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(worker_pool, "ATTEMPTS", 1)
    monkeypatch.setattr(worker_pool, "HOPELESS", 2)
    workload = workload_of(tmp_path, "deadly", [["poison"]] * 4)
    with pytest.raises(UserError, match="2 of 4 shards are set aside"):
        score(workload)


def test_a_pair_without_a_reward_is_counted_and_costs_no_other(tmp_path, cluster):
    workload = workload_of(tmp_path, "not_a_number", [["a", "poison"], ["bb", "c"]])
    assert score(workload) == [workload]
    shard = read_scores(tmp_path / "shard-00000.parquet")
    assert shard.failures == {1: "chosen: its reward is nan"}
    assert np.isnan([shard.chosen[1], shard.rejected[1]]).all()
    for name, shards in (("train.parquet", workload.tasks), (HELD_OUT, [])):
        join_scores(tmp_path / name, [each.outputs[0].file for each in shards])
    summary = summarise(tmp_path, ["train.parquet"])
    assert (summary.rows, summary.unscored, summary.mean) == (4, 1, 7 / 6)
    assert summary.first_unscored.id == shard.ids[1]


@pytest.mark.parametrize(
    ("function", "shards", "message"),
    [
        ("nosuch", [["a"]], "has no function `nosuch`"),
        ("not_a_number", [["poison"]] * 2, "none of the first 1 pairs of scores/a/b has a reward"),
        (
            "not_a_number",
            [["a", "poison"]] * 3,
            "2 pairs have no reward, more than scoring.max_bad",
        ),
    ],
)
def test_a_broken_reward_ends_the_run_at_once(tmp_path, cluster, function, shards, message):
    with pytest.raises(UserError, match=message):
        score(workload_of(tmp_path, function, shards))
    assert len(shard_bytes(tmp_path)) < 3


BROKEN = """
import fcntl, os, pathlib, time
HERE = pathlib.Path(__file__).parent
mine = open(HERE / "sound", "w")
try:
    fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    while not (HERE / "loaded").exists():
        time.sleep(0.01)
    {how}

def words(prompt, response):
    while not (HERE / "retired").exists():
        time.sleep(0.01)
    return len(response.split())
"""


@pytest.mark.parametrize("how", ["os._exit(1)", "raise ImportError('no such library here')"])
def test_a_place_where_the_reward_cannot_be_loaded_costs_the_pool_that_place_alone(
    tmp_path, cluster, caplog, how
):
    workload = workload_of(tmp_path, "words", [["a"]] * 6, ActorPool(actors=2, cpus_per_actor=0.1))
    (tmp_path / "rewards.py").write_text(BROKEN.format(how=how))

    class Tell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for text, file in (("a Python function", "loaded"), ("continuing with 1", "retired")):
                if text in record.getMessage():
                    (tmp_path / file).touch()

    tell = Tell()
    log = logging.getLogger("vcsoup")
    log.addHandler(tell)
    try:
        with caplog.at_level("INFO", "vcsoup"):
            assert score(workload) == [workload]
    finally:
        log.removeHandler(tell)
    assert len(shard_bytes(tmp_path)) == 6
    assert ("out of memory?" in caplog.text) == how.startswith("os._exit")


def test_a_file_system_that_fails_once_is_asked_again(tmp_path, cluster):
    workload = workload_of(tmp_path, "words")
    with open(tmp_path / "rewards.py", "a") as code:
        code.write(
            "if not (HERE / 'tried').exists():\n"
            "    (HERE / 'tried').touch()\n"
            "    raise OSError(116, 'Stale file handle')\n"
        )
    assert score(workload) == [workload]


def test_a_suspect_waits_until_its_actor_has_nothing_else(tmp_path, cluster):
    workload = workload_of(tmp_path, "words", [["a"]] * 3)
    first, second, suspect = workload.tasks
    pool = WorkerPool(workload, size=1, fitting=1, advance=lambda pairs: None)

    def step() -> tuple[ShardTask | None, ShardTask | None, bool]:
        (reference,) = pool.pending
        pool.receive(reference)
        (worker,) = pool.workers
        return worker.task, worker.following, worker.alone

    try:
        step()
        assert step() == (first, second, False)
        pool.suspects.append(pool.queue.pop())
        assert step() == (second, None, True)
        assert step() == (suspect, None, True)
    finally:
        pool.stop()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise OSError(28, 'No space left', 'x')", "m: cannot be written: No space left"),
        (
            "class OutOfMemoryError(RuntimeError):\n"  # as PyTorch calls it
            "    pass\n"
            "raise OutOfMemoryError('CUDA out of memory')",
            "m: OutOfMemoryError: .*lower evaluation.batch",
        ),
    ],
)
def test_a_full_disk_or_gpu_ends_an_evaluation_with_a_line(cluster, code, message):
    def fail() -> None:
        exec(code, {"__name__": "actor"})

    workload = evaluation_workload([], [], [], Evaluation(), None)
    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        ray.get(ray.remote(num_cpus=0.1)(fail).remote())
    with pytest.raises(UserError, match=message):
        workload.raise_if_final("m", raised.value)


def test_functions_run_on_the_main_thread(tmp_path, cluster):
    # Where they may use signals, and connections that belong to the thread that made them.
    score(workload_of(tmp_path, "on_main_thread"))
    assert read_scores(tmp_path / "shard-00000.parquet").chosen.tolist() == [1, 1, 1]
