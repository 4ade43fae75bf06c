"""slurm/merge.sh on a real Slurm of two nodes: the same bytes as by one process here."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command import vcsoup
from merging import files_of
from paused_merge import PAUSING
from slurm_world import ROOT, job, start_now, wait_for_end
from soup_world import SoupWorld, soups
from training_world import processes_with, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

ARRAY = ["--array=0-1", "--cpus-per-task=4"]  # so that two nodes are needed
POLICIES = [f"trained/policies/vc_soup/{value}/seed-0" for value in ("long", "short")]
PLAIN = [*POLICIES, "--grid", "0.5", "--shard-size", "9000", "--out"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SoupWorld:
    return SoupWorld(tmp_path_factory.mktemp("merges"))


@pytest.fixture(scope="module")
def alone(world) -> dict[str, bytes]:
    """The recipe's soups by one process."""
    world.merge(world.run_directory("alone"))
    return soups(world.folder / "alone")


def submit(
    world: SoupWorld, root: Path, *arguments: str, options: list[str], setup: str | None = None
) -> str:
    changed = {"VCSOUP_RUN_DIR": str(root), "VCSOUP_LOG_DIR": "job-logs"}
    if setup:
        changed["VCSOUP_SETUP"] = setup
    done = subprocess.run(
        ["sbatch", "--parsable", *options, ROOT / "slurm/merge.sh", *arguments],
        cwd=world.folder,
        env=os.environ | changed,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def log(world: SoupWorld, number: str, restart: int = 0) -> str:
    (file,) = (world.folder / "job-logs").glob(f"vcsoup-merge-{number}-n?-{restart}.log")
    return file.read_text()


def ended(world: SoupWorld, number: str, code: int = 0, restart: int = 0) -> str:
    """The log of a job that ended with `code`."""
    record, said = wait_for_end(number), log(world, number, restart)
    assert record["ExitCode"] == f"{code}:0", said
    return said


def test_an_array_and_a_job_that_depends_on_it_make_the_soups_of_a_recipe(world, alone):
    root = world.run_directory("array")
    array = submit(world, root, "recipe.yaml", options=ARRAY)
    depends = [f"--dependency=afterok:{array}"]
    arguments = ["recipe.yaml", "--finalise", "--world-size", "2"]
    last = submit(world, root, *arguments, options=depends)
    assert "2, published" in ended(world, last)
    for rank in range(2):
        assert f"rank {rank} of 2: " in ended(world, f"{array}_{rank}")
    nodes = {job(f"{array}_{rank}")["NodeList"] for rank in range(2)}
    assert nodes == {"n1", "n2"}
    assert soups(root) == alone


def test_an_array_merges_checkpoints_without_a_recipe(world):
    vcsoup("merge", *PLAIN, "here", folder=world.folder)
    array = submit(world, world.folder / "never", *PLAIN, "there", options=ARRAY)
    depends = [f"--dependency=afterok:{array}"]
    arguments = [*PLAIN, "there", "--finalise"]
    ended(world, submit(world, world.folder / "never", *arguments, options=depends))
    assert files_of(world.folder / "there") == files_of(world.folder / "here")
    assert not (world.folder / "there.partial").exists()


def test_one_job_without_an_array_does_all(world, alone):
    root = world.run_directory("one")
    ended(world, submit(world, root, "recipe.yaml", options=[]))
    assert soups(root) == alone


def test_stopped_ranks_go_back_into_the_queue_and_killed_ones_are_submitted_again(
    world, alone, tmp_path
):
    root = world.run_directory("disturbed")
    # A `vcsoup` that stops itself after its first chunk, until `free` is there.
    free = tmp_path / "free"
    (tmp_path / "vcsoup").write_text(
        f'#!/bin/bash\n[[ ! -e {free} ]] || exec "$REAL" "$@"\n'
        f'exec "$(dirname "$REAL")/python" -c {PAUSING_IN_SHELL} "$@"\n'
    )
    (tmp_path / "vcsoup").chmod(0o755)
    setup = f"{os.environ['VCSOUP_SETUP']}; export REAL=$(command -v vcsoup); PATH={tmp_path}:$PATH"
    array = submit(world, root, "recipe.yaml", options=["--array=0-1"], setup=setup)

    def at_work() -> list[int]:
        return [pid for pid in processes_with(str(root)) if is_stopped(pid)]

    wait_for(lambda: len(at_work()) == 2)
    free.touch()
    stopped, killed = (f"{array}_{rank}" for rank in (0, 1))
    subprocess.run(["scancel", "--batch", "--signal=USR2", stopped], check=True)
    os.kill(next(pid for pid in at_work() if is_rank(pid, 1)), signal.SIGKILL)
    assert "ended with exit code 137" in ended(world, killed, 137)

    def goes_on() -> bool:
        for pid in at_work():
            os.kill(pid, signal.SIGCONT)
        return job(stopped)["JobState"] == "PENDING"

    wait_for(lambda: time.sleep(0.2) or goes_on())
    assert "stopped on request" in log(world, stopped)
    start_now(stopped)
    assert "chunks were done before" in ended(world, stopped, restart=1)

    arguments = ["recipe.yaml", "--finalise", "--world-size", "2"]
    said = ended(world, submit(world, root, *arguments, options=[]), 2)
    assert "not done yet: ranks 1 of 2" in said
    said = ended(world, submit(world, root, "recipe.yaml", options=["--array=1"]) + "_1", 2)
    assert "add --world-size" in said
    again = submit(world, root, "recipe.yaml", "--world-size", "2", options=["--array=1"])
    assert "chunks were done before" in ended(world, f"{again}_1")
    ended(world, submit(world, root, *arguments, options=[]))
    assert soups(root) == alone


PAUSING_IN_SHELL = shlex.quote(
    f"{PAUSING.format(entries=1)}\nfrom vcsoup_dist.cli.main import main\nmain()\n"
)


def is_stopped(pid: int) -> bool:
    state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    return state == "T"


def is_rank(pid: int, rank: int) -> bool:
    command = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
    return command[command.index(b"--rank") + 1] == str(rank).encode()
