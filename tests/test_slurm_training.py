"""slurm/train_value.sh and reference.sh on a real Slurm of two nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from slurm_world import ROOT, TWO_NODES, Jobs, files, job, start_now, wait_for_end
from training_world import processes_with, wait_for

pytestmark = pytest.mark.usefixtures("slurm")

LONG = "policies/vc_soup/long/seed-0"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def local(jobs) -> Path:
    """Run directory of an undisturbed training by two ranks without Slurm."""
    root = jobs.run_directory("local", "filtered")
    jobs.vcsoup("train", "long", "recipe.yaml", "-d", "local")
    return root


def test_reference_then_an_array_over_the_values_on_two_nodes_equals_local_training(jobs, local):
    root = jobs.run_directory("array", "filtered")
    first = jobs.submit(root, "reference.sh", "recipe.yaml", options=TWO_NODES)
    then = [*TWO_NODES, "--array=0-1", f"--dependency=afterok:{first}"]
    array = jobs.submit(root, "train_value.sh", "recipe.yaml", options=then)
    for task in ("0", "1"):
        ended = wait_for_end(f"{array}_{task}")
        log = jobs.log(f"vcsoup-train-{array}_{task}-n1-0.log")
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), log
        assert "starting 2 ranks, the tasks of Slurm job" in log and "== reference" not in log
    assert "starting 2 ranks" in jobs.log(f"vcsoup-reference-{first}-n1-0.log")
    assert files(root / "reference" / "long") == files(local / "reference" / "long")
    assert files(root / LONG) == files(local / LONG)
    assert (root / "policies/vc_soup/polite/seed-0/model.safetensors").exists()


def test_stopped_in_both_ways_and_killed_it_goes_on_to_the_same_bytes(jobs, local):
    root = jobs.run_directory("disturbed", "local")
    metrics = root / "logs" / LONG / "metrics.jsonl"

    def steps() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def submit() -> str:
        return jobs.submit(root, "train_value.sh", "recipe.yaml", "long", options=TWO_NODES)

    number = submit()
    # To the ranks; to the script alone as for `--signal=B:USR2@600`; and by Slurm, which may end
    # the step before its ranks have saved.
    to_batch = ["scancel", "--batch", "--signal=USR2"]
    disturb = [["scancel", "--signal=USR2"], to_batch, ["scontrol", "requeue"]]
    for restart, (command, after) in enumerate(zip(disturb, (10, 24, 36), strict=True)):
        wait_for(lambda after=after: steps() > after)
        subprocess.run([*command, number], check=True)
        wait_for(lambda: time.sleep(0.2) or job(number)["JobState"] == "PENDING")
        log = jobs.log(f"vcsoup-train-{number}-n1-{restart}.log")
        if command[0] == "scancel":
            assert "stopped on request" in log and f"job {number} goes back into the queue" in log
        assert int(job(number)["Restarts"]) == restart + 1
        assert not (root / LONG).exists(), log
        start_now(number)
    wait_for(lambda: steps() > 48)
    os.kill(rank_of_step(root, 1), signal.SIGKILL)
    ended = wait_for_end(number)
    log = jobs.log(f"vcsoup-train-{number}-n1-3.log")
    assert "resumed after step" in log
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "vcsoup: rank 1 on n2 ended: killed" in log
    assert not (root / LONG).exists()

    number = submit()
    ended = wait_for_end(number)
    log = jobs.log(f"vcsoup-train-{number}-n1-0.log")
    assert ended["JobState"] == "COMPLETED", log
    assert "resumed after step" in log
    assert files(root / LONG) == files(local / LONG)


def test_a_job_with_no_time_before_it_is_asked_to_stop_fails_at_once(jobs):
    root = jobs.folder / "short"
    number = jobs.submit(root, "train_value.sh", "recipe.yaml", "long", options=["--time=19"])
    ended = wait_for_end(number)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    log = jobs.log(f"vcsoup-train-{number}-n1-0.log")
    assert "19 minutes, and is asked to stop 10 before" in log and "at least 20" in log


def rank_of_step(root: Path, rank: int) -> int:
    """Process of a rank of the run directory."""
    for pid in processes_with("vcsoup_dist.launch.srun_rank"):
        place = f"SLURM_PROCID={rank}".encode()
        entry = Path("/proc") / str(pid)
        if str(root).encode() in (entry / "cmdline").read_bytes() and place in (
            entry / "environ"
        ).read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"no rank {rank} of {root}")


@pytest.mark.parametrize("script", ["train_value.sh", "reference.sh"])
def test_a_script_says_how_it_is_used(script):
    file = ROOT / "slurm" / script
    asked = subprocess.run([file, "--help"], check=True, capture_output=True, text=True).stdout
    assert f"slurm/{script} RECIPE" in asked and "SBATCH" not in asked
    done = subprocess.run([file, "recipe.yaml"], capture_output=True, text=True)
    assert (done.returncode, "sbatch" in done.stderr) == (2, True)
