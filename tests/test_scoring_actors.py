"""Real Ray: actors that die cost time and not data, and nothing outlives a killed driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import write_pairs

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes, Located
from vcsoup_dist.launch.ray_cluster import _children, ray_cluster
from vcsoup_dist.plan.products import make_plan
from vcsoup_dist.recipe import CallableReward, Launch, Scoring
from vcsoup_dist.recipe_file import load_recipe
from vcsoup_dist.scoring import stage
from vcsoup_dist.scoring.actors import Pool, ShardTask, run_pools
from vcsoup_dist.scoring.pair_files import (
    AppendedTable,
    PairSlice,
    pairs_schema,
    read_slice,
    train_slices,
)
from vcsoup_dist.scoring.score_files import read_scores
from vcsoup_dist.workspace import Workspace

REWARDS = """
import os, pathlib, signal
HERE = pathlib.Path(__file__).parent

def words(prompt, response):
    return len(response.split())

def letters(prompt, response):
    # Kills its process once, in the middle of a shard that others follow.
    calls = HERE / "calls"
    with open(calls, "ab") as file:
        file.write(b".")
        count = file.tell()
    if count == 30 and not (HERE / "died").exists():
        (HERE / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return -len(response)

def deadly(prompt, response):
    os.kill(os.getpid(), signal.SIGKILL)

def not_a_number(prompt, response):
    return float("nan")
"""


EXPECTED = {"a": lambda text: len(text.split()), "b": lambda text: -len(text)}


def make_scores(folder: Path, model: Path) -> Path:
    """Run the first two stages over two datasets under two functions, two actors each."""
    (folder / "rewards.py").write_text(REWARDS)
    for seed, name in enumerate(("a", "b")):
        write_pairs(folder / f"{name}.jsonl", 40, seed)
    values = {
        "a": {"reward": {"callable": "rewards.py:words"}, "data": {"path": "a.jsonl"}},
        "b": {"reward": {"callable": "rewards.py:letters"}, "data": {"path": "b.jsonl"}},
    }
    scoring = {"shard_pairs": 5, "actors": 2, "cpus_per_actor": 0.5}
    recipe = {"name": "test", "model": str(model), "values": values, "scoring": scoring}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(folder / "recipe.yaml")
    workspace = Workspace.open(folder / "run", loaded)
    plan = make_plan(loaded, Hashes(folder / "run" / "hashes.json"))
    for name, door in (("read", stage.read), ("score", stage.score)):
        due = [p for p in plan if p.stage == name and not workspace.is_made(p)]
        door(loaded, workspace, due)
    return folder / "run"


def test_an_actor_killed_in_mid_run_costs_no_shard_and_doubles_none(tmp_path, tiny_model):
    run = make_scores(tmp_path, tiny_model)
    assert (tmp_path / "died").exists()
    for dataset in "ab":
        shards = train_slices(run / "pairs" / dataset)
        for value, reward in EXPECTED.items():
            folder = run / "scores" / dataset / value
            manifest = json.loads((folder / "manifest.json").read_text())
            listed = [each["file"] for each in manifest["shards"] + manifest["heldout"]]
            assert sorted(listed) == sorted(file.name for file in folder.glob("*.parquet"))
            assert len(manifest["shards"]) == len(shards) > 6
            for i, shard in enumerate(shards):
                scores, pairs = read_scores(folder / f"shard-{i:05d}.parquet"), read_slice(shard)
                assert scores.ids == [pair.id for pair in pairs]
                assert scores.chosen.tolist() == [reward(pair.chosen) for pair in pairs]
                assert scores.rejected.tolist() == [reward(pair.rejected) for pair in pairs]
    assert not [file for file in run.rglob("*") if file.name.startswith(".") and file.is_file()]


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster(Launch()):
        yield


def pool_of(folder: Path, function: str) -> Pool:
    """A pool of one shard of 3 pairs under a function of REWARDS."""
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "lock").touch()
    messages = [{"role": "user", "content": "x"}]
    rows = [
        {"id": f"{i:016x}", "prompt": messages, "chosen": "a", "rejected": "b"} for i in range(3)
    ]
    with AppendedTable(folder / "train.parquet", pairs_schema([])) as table:
        for row in rows:
            table.add(row)
    task = ShardTask(
        "scores/a/b, shard-00000.parquet",
        PairSlice(folder / "train.parquet", 0, 3),
        folder / "shard-00000.parquet",
        folder / "shard.starts",
        folder / "lock",
    )
    reward = CallableReward(callable=f"rewards.py:{function}")
    source = Located(str(folder / "rewards.py"), None, None)
    return Pool("reward of b", reward, source, [task], folder / "load.starts")


def test_several_pools_run_although_the_machine_has_room_for_none_beside_another(tmp_path, cluster):
    pools = []
    for name in "ab":
        (tmp_path / name).mkdir()
        pools.append(pool_of(tmp_path / name, "words"))
    told = []
    done = list(run_pools(pools, Scoring(actors=4, cpus_per_actor=2), told.append))
    assert done == pools and told == [3, 3]
    for name in "ab":
        assert pq.read_table(tmp_path / name / "shard-00000.parquet").num_rows == 3


def test_an_actor_that_fits_on_no_machine_is_refused(tmp_path, cluster):
    with pytest.raises(UserError, match="no machine of the Ray cluster has 1000 CPUs"):
        list(run_pools([pool_of(tmp_path, "words")], Scoring(cpus_per_actor=1000), print))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("deadly", "scores/a/b, shard-00000.parquet: the scoring actor died 3 times"),
        ("not_a_number", "not_a_number: .* the chosen answer of pair 0000000000000000 is nan"),
        ("nosuch", "has no function `nosuch`"),
    ],
)
def test_what_no_restart_mends_stops_the_run_with_its_line(tmp_path, cluster, function, message):
    # Its actors stay until the cluster ends, so they take little room, and this test comes last.
    pool = pool_of(tmp_path, function)
    for _ in range(2):  # the second run counts its deaths anew, and says the same
        with pytest.raises(UserError, match=message):
            list(run_pools([pool], Scoring(cpus_per_actor=0.1), lambda pairs: None))
        assert not pool.tasks[0].scores.exists()


def test_an_address_where_no_cluster_listens_is_refused_at_once():
    message = "no Ray cluster lets us in at 127.0.0.1:1"
    with pytest.raises(UserError, match=message), ray_cluster(Launch(ray_address="127.0.0.1:1")):
        raise AssertionError("connected to nothing")


DRIVER = """
import os, sys, time
import ray
from vcsoup_dist.launch.death import die_with_parent
from vcsoup_dist.launch.ray_cluster import ray_cluster
from vcsoup_dist.recipe import Launch

class Busy:
    def __init__(self):
        die_with_parent(int(os.environ["RAY_RAYLET_PID"]))
        assert os.environ["OMP_NUM_THREADS"] == "3"
    def work(self, file):
        with open(file, "a", buffering=1) as ticks:
            while True:
                print(time.time(), file=ticks)
                time.sleep(0.02)

with ray_cluster(Launch(threads=3)):
    ray.remote(max_restarts=-1, max_task_retries=-1)(Busy).remote().work.remote(sys.argv[1])
    time.sleep(600)
"""


def test_nothing_outlives_a_driver_that_is_killed(tmp_path):
    ticks = tmp_path / "ticks"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RAY_ADDRESS", None)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(ticks)], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not (ticks.exists() and ticks.read_text()):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        family = descendants(driver.pid)
    finally:
        driver.send_signal(signal.SIGKILL)
        killed = time.time()
        driver.wait()
    assert len(family) > 5  # server, raylet, its two agents, actor, ...
    deadline = time.monotonic() + 10
    while left := [pid for pid in family if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert float(ticks.read_text().split()[-1]) < killed + 0.5


def descendants(pid: int) -> list[int]:
    children = _children(pid)
    return children + [each for child in children for each in descendants(child)]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
