"""slurm/train_value.sh on a real Slurm of two nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from slurm_world import TWO_NODES, Jobs, job, products, start_now, wait_for_end
from training_world import processes_with, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.kills, pytest.mark.usefixtures("slurm")]

LONG = "policies/vc_soup/long/seed-0"


@pytest.mark.timeout(900)  # many starts of libraries one after the other
def test_stopped_in_both_ways_and_killed_it_goes_on_to_the_same_bytes(slurm_jobs: Jobs):
    jobs, local = slurm_jobs, slurm_jobs.local
    root = jobs.run_directory("disturbed", "local", without="policies soups evaluation report")
    metrics = root / "logs" / LONG / "metrics.jsonl"

    def steps() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    # The task that trains the first of `vcsoup values`.
    array = [*TWO_NODES, "--array=0"]
    number = f"{jobs.submit(root, 'train_value.sh', 'recipe.yaml', options=array)}_0"
    # To the ranks; to the script alone as for `--signal=B:USR2@600`; and by Slurm, which may end
    # the step before its ranks have saved.
    to_batch = ["scancel", "--batch", "--signal=USR2"]
    disturb = [["scancel", "--signal=USR2"], to_batch, ["scontrol", "requeue"]]
    for restart, (command, after) in enumerate(zip(disturb, (6, 15, 24), strict=True)):
        wait_for(lambda after=after: steps() > after)
        subprocess.run([*command, number], check=True)
        wait_for(lambda: time.sleep(0.2) or job(number)["JobState"] == "PENDING")
        log = jobs.log(number, restart)
        if command[0] == "scancel":
            assert "stopped on request" in log and "goes back into the queue" in log
        assert int(job(number)["Restarts"]) == restart + 1
        assert not (root / LONG).exists(), log
        start_now(number)
    wait_for(lambda: steps() > 32)
    os.kill(rank_of_step(root, 1), signal.SIGKILL)
    ended = wait_for_end(number)
    log = jobs.log(number, restart=3)
    assert "resumed after step" in log
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "vcsoup: rank 1 on n2 ended: killed" in log
    assert not (root / LONG).exists()

    number = jobs.submit(root, "train_value.sh", "recipe.yaml", "long", options=TWO_NODES)
    ended = wait_for_end(number)
    log = jobs.log(number)
    assert ended["JobState"] == "COMPLETED", log
    assert "resumed after step" in log
    assert products(root, LONG) == products(local, LONG)


def test_a_job_with_no_time_before_it_is_asked_to_stop_fails_at_once(slurm_jobs):
    root = slurm_jobs.folder / "short"
    script = ["train_value.sh", "recipe.yaml", "long"]
    number = slurm_jobs.submit(root, *script, options=["--time=19"])
    ended = wait_for_end(number)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    log = slurm_jobs.log(number)
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
