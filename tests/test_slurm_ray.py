"""slurm/score.sh, evaluate.sh, on_one_node.sh and ray.sh on a real Slurm of two nodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import save_tiny_model, write_pairs
from slurm_world import ROOT, job, start_now, wait_for_end
from training_world import wait_for

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.ray_nodes import head_address, wait_for_nodes

pytestmark = pytest.mark.usefixtures("slurm")

WHOLE = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=4"]
REWARDS = """
import os, pathlib, time

def longer(prompt, response):
    # Says where it is at work, and waits at a gate that is closed.
    if gate := os.environ.get("GATE"):
        (pathlib.Path(gate) / f"{os.environ['SLURMD_NODENAME']}-{os.getpid()}").touch()
        while (pathlib.Path(gate) / "closed").exists():
            time.sleep(0.01)
    return float(len(response.split()))

def polite(prompt, response):
    return response.count("yes") - response.count("no") + 0.01 * len(response)
"""
RECIPE = """
name: tiny
model: base
values:
  long:
    data: {path: pairs.jsonl, heldout_share: 0.2}
    reward: {callable: "rewards.py:longer"}
  polite:
    data: {pairs_of: [long]}
    reward: {callable: "rewards.py:polite"}
scoring: {shard_pairs: 4, actors: 2, cpus_per_actor: 2, placement: spread}
training:
  {dtype: fp32, learning_rate: 1.0e-3, pairs_per_step: 8, steps: 2, max_length: 64,
   checkpoint_every: 2, evaluate_every: 2, gradient_checkpointing: false}
soup: {grid: 0.5}
evaluation:
  {actors: 2, cpus_per_actor: 2, prompts: 4, max_new_tokens: 8, max_prompt_tokens: 60,
   dtype: fp32, bootstrap: 100}
launch: {ranks: 1}
"""
SOURCED = """#!/usr/bin/env bash
#SBATCH --output=%x-%j.out
set -euo pipefail
source "$SCRIPTS/environment.sh"
source "$SCRIPTS/ray.sh"
job_log
set_up
start_ray
"""


class Jobs:
    """A recipe, and jobs of the scripts on it; a mark finds all processes that they start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = Path(
            tempfile.mkdtemp(prefix="rt-", dir="/tmp")
        )  # short, for Ray's sockets
        self.mark = f"VCSOUP_TEST_JOBS={uuid.uuid4()}"
        save_tiny_model(folder / "base")
        write_pairs(folder / "pairs.jsonl", 60)
        (folder / "rewards.py").write_text(REWARDS)
        (folder / "recipe.yaml").write_text(RECIPE)

    def vcsoup(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "vcsoup_dist.cli", *arguments]
        subprocess.run(command, cwd=self.folder, check=True)

    def copy(self, name: str, without: str) -> Path:
        """The run directory `local`, without some of its folders."""
        root = self.folder / name
        ignore = shutil.ignore_patterns(*without.split(), "work", "locks")
        shutil.copytree(self.folder / "local", root, ignore=ignore)
        return root

    def submit(self, script: Path, *arguments: str, options: list[str], **variables: str) -> str:
        name, value = self.mark.split("=")
        done = subprocess.run(
            ["sbatch", "--parsable", *options, script, *arguments],
            cwd=self.folder,
            env={
                **os.environ,
                "VCSOUP_LOG_DIR": "job-logs",
                "TMPDIR": str(self.temporary),
                name: value,
                **variables,
            },
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def run(self, stage: str, root: Path, **variables: str) -> str:
        script = ROOT / "slurm" / f"{stage}.sh"
        return self.submit(
            script, "recipe.yaml", options=WHOLE, VCSOUP_RUN_DIR=str(root), **variables
        )

    def log(self, number: str, restart: int = 0) -> str:
        found = (self.folder / "job-logs").glob(f"*-{number}-*-{restart}.log")
        return "\n".join(f"{each.name}:\n{each.read_text()}" for each in sorted(found))

    def ends(self, number: str, state: str = "COMPLETED") -> str:
        """The log of a job that ends in this state and leaves no process."""
        ended = wait_for_end(number)
        log = self.log(number)
        assert ended["JobState"] == state, log
        self.leaves_nothing()
        return log

    def leaves_nothing(self) -> None:
        with suppress(AssertionError):  # Ray's agents may outlive a raylet by a minute
            wait_for(lambda: time.sleep(0.1) or not self.processes(), 70)
        assert not [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in self.processes()]
        assert not list(self.temporary.glob("vcsoup-ray-*"))

    def processes(self, *having: str) -> list[int]:
        """Processes of the jobs with all these variables in their environment."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and all(each.encode() in variables for each in (self.mark, *having)):
                found.append(int(entry.name))
        return found

    def of_node(self, node: str, program: str) -> int:
        """The process of a program on a node."""
        for pid in self.processes(f"SLURMD_NODENAME={node}"):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(part.endswith(b"/" + program.encode()) for part in command[:2]):
                return pid
        raise AssertionError(f"no {program} on {node}")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Iterator[Jobs]:
    """With the run directory `local`, scored without Slurm."""
    jobs = Jobs(tmp_path_factory.mktemp("jobs"))
    jobs.vcsoup("score", "recipe.yaml", "-d", "local")
    yield jobs
    shutil.rmtree(jobs.temporary)


def products(root: Path, *folders: str) -> dict[str, bytes]:
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    assert files
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def scores(root: Path) -> dict[str, bytes]:
    return products(root, "pairs", "scores")


class Gate:
    """Where the actors of a job wait in the middle of their shards until it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "closed").touch()

    def wait_for_both_nodes(self) -> None:
        def nodes() -> set[str]:
            return {path.name.split("-")[0] for path in self.folder.glob("n*-*")}

        wait_for(lambda: time.sleep(0.1) or nodes() == {"n1", "n2"})

    def forget(self) -> None:
        for path in self.folder.glob("n*-*"):
            path.unlink()

    def open(self) -> None:
        (self.folder / "closed").unlink()


@pytest.fixture
def gate(tmp_path) -> Gate:
    return Gate(tmp_path)


def test_scores_by_two_nodes_of_which_one_is_lost_are_those_of_one_machine(jobs, gate):
    root = jobs.folder / "lost"
    number = jobs.run("score", root, GATE=str(gate.folder))
    gate.wait_for_both_nodes()
    os.kill(jobs.of_node("n2", "raylet"), signal.SIGKILL)
    gate.open()
    log = jobs.ends(number)
    assert "Ray runs on 2 nodes" in log and f"vcsoup-score-{number}-ray-n2-0.log" in log
    assert "its actor died, another takes its place" in log
    assert scores(root) == scores(jobs.folder / "local")


def test_stopped_on_request_a_job_goes_back_into_the_queue_and_goes_on(jobs, gate):
    root = jobs.folder / "stopped"
    number = jobs.run("score", root, GATE=str(gate.folder))
    gate.wait_for_both_nodes()
    ask_to_stop(number)
    jobs.leaves_nothing()
    log = jobs.log(number)
    assert "stopped on request" in log and "srun: error" not in log
    start_now(number)
    # Before the command runs, while Ray's nodes start.
    wait_for(lambda: jobs.processes("SLURMD_NODENAME=n2"))
    ask_to_stop(number)
    jobs.leaves_nothing()
    assert "Ray runs on" not in jobs.log(number, restart=1)
    gate.forget()
    start_now(number)
    gate.wait_for_both_nodes()
    os.kill(jobs.of_node("n2", "ray"), signal.SIGKILL)
    gate.open()
    jobs.ends(number)
    assert scores(root) == scores(jobs.folder / "local")


def ask_to_stop(number: str) -> None:
    subprocess.run(["scancel", "--batch", "--signal=USR2", number], check=True)
    wait_for(lambda: time.sleep(0.2) or job(number)["JobState"] == "PENDING", 60)


def test_a_cancelled_job_leaves_no_process_and_no_file(jobs, gate):
    number = jobs.run("score", jobs.folder / "cancelled", GATE=str(gate.folder))
    gate.wait_for_both_nodes()
    subprocess.run(["scancel", number], check=True)
    jobs.ends(number, "CANCELLED")


def test_a_ray_node_that_does_not_start_is_named_with_its_log_tail(jobs, tmp_path):
    ray = tmp_path / "ray"
    ray.write_text(
        '#!/bin/sh\n[ "$SLURMD_NODENAME" = n1 ] || { echo no luck; exit 3; }\n'
        f'exec {Path(sys.executable).parent}/ray "$@"'
    )
    ray.chmod(0o755)
    setup = f"{os.environ['VCSOUP_SETUP']}; PATH={tmp_path}:$PATH"
    number = jobs.run("score", jobs.folder / "broken", VCSOUP_SETUP=setup)
    log = jobs.ends(number, "FAILED")
    assert "== Ray on n2 has ended; the end of job-logs/" in log and "\nno luck\n" in log
    assert "== Ray on n1 has ended" not in log
    assert job(number)["ExitCode"] == "2:0"


def test_with_a_container_the_command_is_a_step_in_it_too(jobs):
    # Options of srun that a Slurm without containers knows.
    root = jobs.folder / "boxed"
    number = jobs.run("score", root, VCSOUP_CONTAINER="--comment='a box'")
    jobs.ends(number)
    assert scores(root) == scores(jobs.folder / "local")


GPUS = """
import json, os, sys, time
from pathlib import Path
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

ray.init(log_to_driver=False)

@ray.remote(num_gpus=1, num_cpus=1)
class Actor:
    def place(self):
        names = [name for name in os.environ if name.startswith(("SLURM_", "PMI"))]
        return os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"], names

count, mine, other = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
actors = [Actor.remote() for _ in range(count)]
places = ray.get([actor.place.remote() for actor in actors])
mine.write_text(json.dumps([places, sorted(node["NodeName"] for node in ray.nodes())]))
while not other.exists():
    time.sleep(0.1)
assert ray.get([actor.place.remote() for actor in actors]) == places
"""


def submit_gpus(
    jobs: Jobs, count: int, mine: Path, other: Path, options: list[str], then: str = ""
) -> str:
    (jobs.folder / "gpus.py").write_text(GPUS)
    (jobs.folder / "gpus.sh").write_text(
        f"{SOURCED}python3 gpus.py {count} {mine} {other}\n{then}\n"
    )
    return jobs.submit(
        jobs.folder / "gpus.sh", options=["--nodes=2", *options], SCRIPTS=str(ROOT / "slurm")
    )


WAITS = """
import os, sys
from vcsoup_dist.launch.ray_nodes import wait_for_nodes
from vcsoup_dist.errors import UserError
try:
    wait_for_nodes(os.environ["RAY_ADDRESS"], int(sys.argv[1]), patience=0)
except UserError as error:
    print("said:", error)
"""
THREE_TIMES = "python3 waits.py 2; python3 waits.py 3; RAY_AUTH_TOKEN=guess python3 waits.py 2"


def test_every_actor_has_a_gpu_of_its_own_and_nobody_comes_in_without_the_token(jobs, tmp_path):
    (jobs.folder / "waits.py").write_text(WAITS)
    said = tmp_path / "said"
    whole = ["--gpus-per-node=2", "--cpus-per-task=4"]
    log = jobs.ends(submit_gpus(jobs, 4, said, said, whole, THREE_TIMES))
    places, _ = json.loads(said.read_text())
    found = sorted((node, device) for node, device, _ in places)
    assert found == [("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1")]
    assert not any(names for *_, names in places)
    lines = [line for line in log.splitlines() if line.startswith("said:")]
    assert lines[0] == "said: 2 of 3 Ray nodes are there after 0 s: n1, n2"
    assert len(lines) == 2 and "said: no Ray cluster at" in lines[1]


def test_two_clusters_on_the_same_nodes_do_not_disturb_each_other(jobs, tmp_path):
    said = [tmp_path / "first", tmp_path / "second"]
    numbers = [
        submit_gpus(jobs, 2, mine, other, [gpus, "--cpus-per-task=2"])
        for gpus, mine, other in (("--gpus-per-node=1", *said), ("--gpus=2", *said[::-1]))
    ]
    for number in numbers:
        ended = wait_for_end(number)
        assert ended["JobState"] == "COMPLETED", jobs.log(number)
    jobs.leaves_nothing()
    found = []
    for file in said:
        places, nodes = json.loads(file.read_text())
        assert nodes == ["n1", "n2"]
        found += [(node, device) for node, device, _ in places]
    assert sorted(found) == [("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1")]


def test_where_nobody_listens_the_wait_ends_and_says_so():
    address, other = head_address("127.0.0.1")
    host, port = address.split(":")
    assert host == "127.0.0.1" and 1024 <= int(port) != other >= 1024
    with pytest.raises(UserError, match=f"no Ray cluster at {address}"):
        wait_for_nodes(address, 1, patience=0)
    with pytest.raises(UserError, match="no way to no.such.node"):
        head_address("no.such.node.invalid")


def test_an_evaluation_by_two_nodes_and_stages_on_one_are_those_of_a_local_run(jobs):
    local = jobs.folder / "local"
    jobs.vcsoup("run", "recipe.yaml", "-d", "local")
    root = jobs.copy("evaluated", without="filtered evaluation report")
    script = ROOT / "slurm" / "on_one_node.sh"
    options = ["--cpus-per-task=2"]
    one = {"VCSOUP_RUN_DIR": str(root)}
    assert "filtered/vc_soup" in jobs.ends(
        jobs.submit(script, "filter", "recipe.yaml", options=options, **one)
    )
    assert products(root, "filtered") == products(local, "filtered")
    assert "evaluation: 4 held-out prompts" in jobs.ends(jobs.run("evaluate", root))
    assert products(root, "evaluation") == products(local, "evaluation")


@pytest.mark.parametrize("script", ["score.sh", "evaluate.sh", "on_one_node.sh"])
def test_a_script_says_how_it_is_used(script):
    file = ROOT / "slurm" / script
    asked = subprocess.run([file, "--help"], check=True, capture_output=True, text=True).stdout
    assert f"slurm/{script}" in asked and "RECIPE" in asked and "#SBATCH" not in asked
    done = subprocess.run([file, "filter", "recipe.yaml"], capture_output=True, text=True)
    assert (done.returncode, "sbatch" in done.stderr) == (2, True)
