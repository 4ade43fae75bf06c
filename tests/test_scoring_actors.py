"""Pools of real Ray actors: those that die cost time and not data, and what fails is named."""

from __future__ import annotations

import json
import logging
import platform

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from scoring_world import shard_bytes, workload_of

from vcsoup_dist.errors import UserError
from vcsoup_dist.evaluation.workload import evaluation_workload
from vcsoup_dist.launch import pools, worker_pool
from vcsoup_dist.launch.pools import run_pools
from vcsoup_dist.launch.ray_cluster import ray_cluster
from vcsoup_dist.launch.worker_pool import WorkerPool
from vcsoup_dist.recipe import ActorPool, Evaluation, Launch
from vcsoup_dist.records.scores import join_scores, read_scores, summarise
from vcsoup_dist.scoring.tasks import ShardTask
from vcsoup_dist.scoring.workload import ScoringWorkload

pytestmark = [pytest.mark.ray, pytest.mark.kills]


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
    join_scores(tmp_path / "train.parquet", [each.outputs[0].file for each in workload.tasks])
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


TAKES_OTHERS_ALONG = """
def takes_others_along(prompt, response):
    # At the answer `guilty`: kills all actors, the others first. Actors wait for each other; the
    # third time not for long, since each may be alone.
    if response == "z":
        return 0
    guilty = response == "guilty"
    own, other = ("guilty", "innocent") if guilty else ("innocent", "guilty")
    with (HERE / f"tries-{own}").open("a") as file:
        file.write(".")
    tries = (HERE / f"tries-{own}").stat().st_size
    here = HERE / f"{own}-{os.getpid()}"
    here.touch()
    deadline = time.monotonic() + [300, 300, 5, 0, 0][tries - 1]
    while not list(HERE.glob(f"{other}-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    if guilty:
        for file in HERE.glob("innocent-*"):
            file.unlink()
            os.kill(int(file.name.rpartition("-")[2]), signal.SIGKILL)
            time.sleep(2 if tries > 2 else 0)  # let that death be seen first
        here.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    while tries < 3 or list(HERE.glob("guilty-*")):
        time.sleep(0.01)
    here.unlink()
    return len(response)
"""


def test_a_task_that_takes_others_along_is_the_one_that_is_named(tmp_path, cluster):
    actors = ActorPool(actors=2, cpus_per_actor=0.1)
    workload = workload_of(tmp_path, "takes_others_along", [["innocent"], ["guilty"]], actors)
    with open(tmp_path / "rewards.py", "a") as code:
        code.write(TAKES_OTHERS_ALONG)
    workload.look_ahead, workload.last_attempt_alone = False, True  # as evaluation has it
    with pytest.raises(UserError, match="1 of 2 shards .*00001.parquet: .*died 3 times"):
        score(workload)
    assert (tmp_path / "tries-guilty").read_text() == "..."
    assert set(shard_bytes(tmp_path)) == {"shard-00000.parquet"}


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
