"""Rewards, pairs and workloads that the tests of the scoring workers use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from conftest import write_pairs

from vcsoup_dist.identity import Located
from vcsoup_dist.processes import children
from vcsoup_dist.recipe import ActorPool, CallableReward
from vcsoup_dist.records.pairs import AppendedTable, PairSlice, pairs_schema
from vcsoup_dist.scoring.tasks import Output, ShardTask
from vcsoup_dist.scoring.workload import ScoringWorkload, worker_resources

REWARDS = """
import os, pathlib, signal, threading, time
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

def gated(prompt, response):
    # Waits at a prompt for as long as the file `closed` lists it.
    (HERE / "at-work").touch()
    while prompt[-1]["content"] in (HERE / "closed").read_text().splitlines():
        time.sleep(0.01)
    return len(response.split())

def disturbed(prompt, response):
    # In the middle of a shard its process ends by itself once, and then waits to be killed once.
    if not (HERE / "exited").exists():
        (HERE / "exited").touch()
        os._exit(1)
    if not (HERE / "killed").exists():
        (HERE / "kill-me").write_text(str(os.getpid()))
        while True:
            time.sleep(0.1)
    return len(response.split())

def fills_the_disk(prompt, response):
    if (HERE / "fill").exists():
        with open(HERE / "run" / "ballast", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass
    return len(response.split())

def deadly(prompt, response):
    with open(HERE / "scored", "a") as file:
        file.write(response + "\\n")
    if "poison" in response and not (HERE / "cured").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return len(response.split())

def not_a_number(prompt, response):
    return float("nan") if "poison" in response else len(response)

def on_main_thread(prompt, response):
    return float(threading.current_thread() is threading.main_thread())

def joined(prompt, response):
    # Once the cluster has `grown`, waits for a second process.
    (HERE / f"at-work-{os.getpid()}").touch()
    deadline = time.monotonic() + 200
    while (HERE / "grown").exists() and len(list(HERE.glob("at-work-*"))) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError("nobody else came")
        time.sleep(0.01)
    return len(response)

def one_of_three(prompt, response):
    # Three processes come here; then one of them continues, the others when `open` is there.
    (HERE / f"at-work-{os.getpid()}").touch()
    while len(list(HERE.glob("at-work-*"))) < 3 and not (HERE / "open").exists():
        time.sleep(0.01)
    try:
        (HERE / "winner").touch(exist_ok=False)
        import ray
        (HERE / f"winner-{os.getpid()}").write_text(ray.get_runtime_context().get_node_id())
    except FileExistsError:
        while not (HERE / f"winner-{os.getpid()}").exists() and not (HERE / "open").exists():
            time.sleep(0.01)
    return len(response)
"""


def workload_of(
    folder: Path,
    function: str,
    shards: Sequence[Sequence[str]] = (("a", "b", "c"),),
    actors: ActorPool | None = None,
) -> ScoringWorkload:
    """A workload in a folder of its own; shards are given by their chosen answers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "lock").touch()
    tasks = []
    for i, answers in enumerate(shards):
        file = folder / f"train-{i:05d}.parquet"
        with AppendedTable(file, pairs_schema([])) as table:
            for j, answer in enumerate(answers):
                prompt = [{"role": "user", "content": "x"}]
                texts = {"prompt": prompt, "chosen": answer, "rejected": "z"}
                table.add({"id": f"{i:08x}{j:08x}", **texts})
        scores = folder / f"shard-{i:05d}.parquet"
        output = Output("scores/a/b", 0, scores, folder / "lock")
        tasks.append(ShardTask(PairSlice(file, 0, len(answers)), (output,)))
    actors = actors or ActorPool(cpus_per_actor=0.1)
    return ScoringWorkload(
        name="reward of b",
        section="scoring",
        tasks=tasks,
        workers=actors.actors,
        resources=worker_resources(actors),
        rewards=[CallableReward(callable=f"rewards.py:{function}")],
        source=Located(str(folder / "rewards.py"), None, None),
        tokens_per_batch=None,
        most_unscored={"scores/a/b": 1},
        resumed=False,
        quarantine=folder / "quarantine.json",
    )


def shard_bytes(folder: Path) -> dict[str, bytes]:
    """Path below `folder` -> content, for the scores of all shards."""
    files = [*folder.rglob("shard-*.parquet"), *folder.rglob("heldout-*.parquet")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def score_bytes(run: Path) -> dict[str, bytes]:
    """Path -> content, for all score files of finished products."""
    files = (run / "scores").rglob("*.parquet")
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def write_recipe(folder: Path, model: Path, rewards: dict[str, dict], scoring: dict) -> Path:
    """A recipe of values with a dataset of 40 pairs each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rewards.py").write_text(REWARDS)
    values = {}
    for seed, (name, reward) in enumerate(rewards.items()):
        write_pairs(folder / f"{name}.jsonl", 40, seed)
        values[name] = {"reward": reward, "data": {"path": f"{name}.jsonl"}}
    recipe = {"name": "test", "model": str(model), "values": values, "scoring": scoring}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def start_score(folder: Path, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """Start `vcsoup score recipe.yaml --run-dir run` in `folder`."""
    command = [sys.executable, "-m", "vcsoup_dist.cli", "score", "recipe.yaml", "--run-dir", "run"]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that these started."""
    found = children(pid)
    return found + [each for child in found for each in descendants(child)]


def alive(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
