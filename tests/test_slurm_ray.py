"""slurm/score.sh and ray.sh on a real Slurm of two nodes."""

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
from slurm_world import RECIPE, ROOT, Jobs, job, products, start_now, wait_for_end
from training_world import wait_for

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.ray_nodes import head_address, wait_for_nodes

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

WHOLE = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=4"]
GATED = """
import json, os, pathlib, time

def longer(prompt, response):
    # Says where it is at work, and waits at a gate that is closed.
    if gate := os.environ.get("GATE"):
        slurms = [name for name in os.environ if name.startswith(("SLURM_", "PMI"))]
        place = os.environ["SLURMD_NODENAME"], os.environ.get("CUDA_VISIBLE_DEVICES"), slurms
        here = pathlib.Path(gate) / f"{place[0]}-{os.getpid()}"
        here.with_suffix(".part").write_text(json.dumps(place))
        here.with_suffix(".part").rename(here.with_suffix(".here"))
        while (pathlib.Path(gate) / "closed").exists():
            time.sleep(0.01)
    return float(len(response.split()))
"""
GATED_REWARD = ("{columns: [long_chosen, long_rejected]}", '{callable: "gated.py:longer"}')
SCORING = {
    "gated": "{shard_pairs: 4, actors: 2, cpus_per_actor: 2, placement: spread}",
    "gpus": "{shard_pairs: 4, actors: 4, gpus_per_actor: 1}",
}


# Agents of a Ray that has ended look a minute for its head before they end, too.
IMPATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}


class RayJobs:
    """Jobs that start Ray; a mark finds all processes that they start."""

    def __init__(self, jobs: Jobs, temporary: Path) -> None:
        self.jobs, self.folder, self.temporary = jobs, jobs.folder, temporary
        self.submitted: list[str] = []
        self.mark = f"VCSOUP_TEST_JOBS={uuid.uuid4()}"
        (self.folder / "gated.py").write_text(GATED)
        for name, scoring in SCORING.items():
            text = RECIPE.replace(*GATED_REWARD) + f"scoring: {scoring}\n"
            (self.folder / f"{name}.yaml").write_text(text)
        jobs.vcsoup("score", "gated.yaml", "-d", "scored")

    def submit(
        self, root: Path, script: str | Path, *arguments: str, options: list[str], **variables: str
    ) -> str:
        ours = {"TMPDIR": str(self.temporary), **dict([self.mark.split("=")]), **IMPATIENT}
        number = self.jobs.submit(root, script, *arguments, options=options, **ours, **variables)
        self.submitted.append(number)
        return number

    def score(self, name: str, *options: str, recipe: str = "gated.yaml", **variables: str) -> str:
        """A job of score.sh on both nodes into the run directory of that name."""
        root = self.folder / name
        return self.submit(root, "score.sh", recipe, options=[*WHOLE, *options], **variables)

    def cancel(self) -> None:
        """Those that a failed test left, which hold both nodes, and their folders."""
        for number in self.submitted:
            subprocess.run(["scancel", "--quiet", number], check=True)
            wait_for_end(number)
        self.submitted.clear()
        for folder in self.temporary.glob("vcsoup-ray-*"):
            shutil.rmtree(folder)

    def is_scored(self, name: str) -> bool:
        """Whether a run directory has the bytes that this machine made without Slurm."""
        made, scored = (
            products(self.folder / each, "pairs", "scores") for each in (name, "scored")
        )
        return made == scored

    def ends(self, number: str, state: str = "COMPLETED") -> str:
        """The log of a job that ends in this state and leaves no process."""
        ended = wait_for_end(number)
        log = self.jobs.log(number)
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
def jobs(slurm_jobs) -> Iterator[RayJobs]:
    temporary = tempfile.mkdtemp(prefix="rt-", dir="/tmp")  # short, for Ray's sockets
    yield RayJobs(slurm_jobs, Path(temporary))
    shutil.rmtree(temporary)


@pytest.fixture(autouse=True)
def leave_no_job(jobs: RayJobs) -> Iterator[None]:
    yield
    jobs.cancel()


class Gate:
    """Where the actors of a job wait in the middle of their shards until it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "closed").touch()

    def wait_for_actors(self, on_each_node: int = 1) -> list[tuple[str, str, list[str]]]:
        """The node, the GPUs and Slurm's variables of each actor, once they are there."""
        nodes = ["n1"] * on_each_node + ["n2"] * on_each_node
        wait_for(lambda: sorted(place[0] for place in self._places()) == nodes)
        return self._places()

    def _places(self) -> list[tuple[str, str, list[str]]]:
        return [tuple(json.loads(file.read_text())) for file in self.folder.glob("*.here")]

    def forget(self) -> None:
        for path in self.folder.glob("*.here"):
            path.unlink()

    def open(self) -> None:
        (self.folder / "closed").unlink()


@pytest.fixture
def gate(tmp_path) -> Gate:
    return Gate(tmp_path)


ALL_GPUS = [("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1")]


@pytest.mark.timeout(900)  # many starts of libraries one after the other
def test_in_a_container_by_an_actor_per_gpu_with_a_node_lost_scores_are_those_of_one_machine(
    jobs, gate
):
    # Options of srun that a Slurm without containers knows.
    boxed = {"VCSOUP_CONTAINER": "--comment='a box'", "GATE": str(gate.folder)}
    number = jobs.score("lost", "--gpus-per-node=2", recipe="gpus.yaml", **boxed)
    places = gate.wait_for_actors(on_each_node=2)
    assert sorted(place[:2] for place in places) == ALL_GPUS
    assert not any(slurms for *_, slurms in places)
    os.kill(jobs.of_node("n2", "raylet"), signal.SIGKILL)
    gate.open()
    log = jobs.ends(number)
    assert "Ray runs on 2 nodes" in log and f"vcsoup-score-{number}-ray-n2-0.log" in log
    assert "its actor died, another takes its place" in log
    assert jobs.is_scored("lost")


@pytest.mark.timeout(900)  # many starts of libraries one after the other
def test_stopped_on_request_a_job_goes_back_into_the_queue_and_goes_on(jobs, gate):
    number = jobs.score("stopped", GATE=str(gate.folder))
    gate.wait_for_actors()
    ask_to_stop(number)
    jobs.leaves_nothing()
    log = jobs.jobs.log(number)
    assert "stopped on request" in log and "srun: error" not in log
    start_now(number)
    # Before the command runs, while Ray's nodes start.
    wait_for(lambda: jobs.processes("SLURMD_NODENAME=n2"))
    ask_to_stop(number)
    jobs.leaves_nothing()
    assert "Ray runs on" not in jobs.jobs.log(number, restart=1)
    gate.forget()
    start_now(number)
    gate.wait_for_actors()
    os.kill(jobs.of_node("n2", "ray"), signal.SIGKILL)
    gate.open()
    jobs.ends(number)
    assert jobs.is_scored("stopped")


def ask_to_stop(number: str) -> None:
    subprocess.run(["scancel", "--batch", "--signal=USR2", number], check=True)
    wait_for(lambda: time.sleep(0.2) or job(number)["JobState"] == "PENDING", 60)


def test_a_ray_node_that_does_not_start_is_named_with_its_log_tail(jobs, tmp_path):
    ray = tmp_path / "ray"
    ray.write_text(
        '#!/bin/sh\n[ "$SLURMD_NODENAME" = n1 ] || { echo no luck; exit 3; }\n'
        f'exec {Path(sys.executable).parent}/ray "$@"'
    )
    ray.chmod(0o755)
    setup = f"{os.environ['VCSOUP_SETUP']}; PATH={tmp_path}:$PATH"
    number = jobs.score("broken", VCSOUP_SETUP=setup)
    log = jobs.ends(number, "FAILED")
    assert "== Ray on n2 has ended; the end of job-logs/" in log and "\nno luck\n" in log
    assert "== Ray on n1 has ended" not in log
    assert job(number)["ExitCode"] == "2:0"


SOURCED = """#!/usr/bin/env bash
#SBATCH --output=%x-%j.out
set -euo pipefail
source "$SCRIPTS/environment.sh"
source "$SCRIPTS/ray.sh"
job_log
set_up
start_ray
vcsoup=(python3)
"""
# Two actors with a GPU each say where they are; they must still be there whenever asked.
ACTORS = """
import json, os, sys, time
from pathlib import Path
import ray

ray.init(log_to_driver=False)

@ray.remote(num_gpus=1, num_cpus=1)
class Actor:
    def place(self):
        return os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"]

said, asked = Path(sys.argv[1]), map(Path, sys.argv[2].split(":"))
actors = [Actor.remote() for _ in range(2)]
places = ray.get([actor.place.remote() for actor in actors])
said.write_text(json.dumps([places, sorted(node["NodeName"] for node in ray.nodes())]))
for each in asked:
    while not each.exists():
        time.sleep(0.1)
    assert ray.get([actor.place.remote() for actor in actors]) == places
    Path(f"{said}-still").touch()
"""
WAITS = """
import os, sys
from vcsoup_dist.launch.ray_nodes import wait_for_nodes
from vcsoup_dist.errors import UserError
try:
    wait_for_nodes(os.environ["RAY_ADDRESS"], int(sys.argv[1]), patience=0)
except UserError as error:
    print("said:", error)
"""
THREE_TIMES = "python3 waits.py 2; python3 waits.py 3; RAY_AUTH_TOKEN=guess python3 waits.py 2\n"


def submit_actors(
    jobs: RayJobs, name: str, said: Path, asked: list[Path], gpus: str, before: str = ""
) -> str:
    arguments = f"actors.py {said} {':'.join(map(str, asked))}"
    script = jobs.folder / f"{name}.sh"
    script.write_text(f"{SOURCED}{before}run_vcsoup {arguments}\n")
    options = ["--nodes=2", gpus, "--cpus-per-task=2"]
    return jobs.submit(jobs.folder / name, script, options=options, SCRIPTS=str(ROOT / "slurm"))


def test_two_clusters_on_the_same_nodes_do_not_disturb_each_other_whichever_ends_and_how(
    jobs, tmp_path
):
    (jobs.folder / "actors.py").write_text(ACTORS)
    (jobs.folder / "waits.py").write_text(WAITS)
    said = [tmp_path / "first", tmp_path / "second"]
    over, never = tmp_path / "over", tmp_path / "never"
    first = submit_actors(jobs, "first", said[0], [said[1]], "--gpus-per-node=1", THREE_TIMES)
    second = submit_actors(jobs, "second", said[1], [over, never], "--gpus=2")
    ended, log = wait_for_end(first), jobs.jobs.log(first)
    assert ended["JobState"] == "COMPLETED", log

    # Nobody comes in without the token.
    lines = [line for line in log.splitlines() if line.startswith("said:")]
    assert lines[0] == "said: 2 of 3 Ray nodes are there after 0 s: n1, n2"
    assert len(lines) == 2 and "said: no Ray cluster at" in lines[1]

    over.touch()
    wait_for((tmp_path / "second-still").exists)
    subprocess.run(["scancel", second], check=True)
    jobs.ends(second, "CANCELLED")
    found = []
    for file in said:
        places, nodes = json.loads(file.read_text())
        assert nodes == ["n1", "n2"]
        found += [(node, device) for node, device in places]
    assert sorted(found) == ALL_GPUS


def test_where_nobody_listens_the_wait_ends_and_says_so():
    address, other = head_address("127.0.0.1")
    host, port = address.split(":")
    assert host == "127.0.0.1" and 1024 <= int(port) != other >= 1024
    with pytest.raises(UserError, match=f"no Ray cluster at {address}"):
        wait_for_nodes(address, 1, patience=0)
    with pytest.raises(UserError, match="no way to no.such.node"):
        head_address("no.such.node.invalid")
