"""`vcsoup submit`, `cancel` and `status` on a real Slurm of two nodes."""

from __future__ import annotations

import subprocess

import pytest
from command import run_vcsoup
from slurm_world import CHAIN, RECIPE, Jobs, job, products, wait_for_end
from training_world import wait_for

from vcsoup_dist.slurm_jobs.submissions import read_submissions

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


@pytest.fixture
def jobs(slurm_jobs, monkeypatch, tmp_path) -> Jobs:
    """Without a site file."""
    monkeypatch.delenv("VCSOUP_SITE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return slurm_jobs


def vcsoup(jobs: Jobs, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_vcsoup(*arguments, folder=jobs.folder)


MADE = ["filtered", "reference", "policies", "soups", "evaluation"]
TWO_NODES = "{reference: {nodes: 2}, train: {nodes: 2}, evaluate: {nodes: 2}}"


@pytest.mark.timeout(900)  # many starts of libraries one after the other
def test_a_chain_fails_in_the_middle_goes_on_and_makes_what_one_machine_makes(jobs, monkeypatch):
    recipe = jobs.folder / "chain.yaml"
    recipe.write_text(RECIPE.replace("{ranks: 2}", f"{{ranks: 2, slurm: {TWO_NODES}}}"))
    root = jobs.run_directory("chain", "filtered", without="filtered")
    for name, value in (("SBATCH_EXPORT", "NONE"), ("SQUEUE_STATES", "RUNNING"), ("USER", "bob")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOGNAME", "bob")

    def submit() -> list[str]:
        done = vcsoup(jobs, "submit", recipe, "-d", root)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines() or [done.stderr]

    def ended(stage: str) -> str:
        newest = {each.stage: each.id for each in read_submissions(root)}[stage]
        return wait_for_end(newest)["JobState"]

    scores = next((root / "scores").rglob("*.parquet"))
    whole = scores.read_bytes()
    scores.write_bytes(whole[:-9])
    assert [line.split()[0] for line in submit()] == CHAIN[1:]
    assert ["in the queue already" in line for line in submit()] == [True] * len(CHAIN[1:])
    assert [ended(each) for each in ("filter", "reference", "report")] == [
        "FAILED", "CANCELLED", "CANCELLED",
    ]  # fmt: skip
    said = vcsoup(jobs, "status", recipe, "-d", root).stdout
    assert "filter failed" in said and "not a parquet file" in said

    scores.write_bytes(whole)
    assert [line.split()[0] for line in submit()] == CHAIN[1:]
    assert ended("report") == "COMPLETED"
    assert "nothing to do" in submit()[0]
    assert (root / "report" / "table.txt").exists()
    assert products(root, *MADE) == products(jobs.local, *MADE)

    logs = [file.read_text() for file in sorted((root / "logs/jobs").glob("tiny-*-0.log"))]
    ranks = [log for log in logs if "starting 2 ranks, the tasks of Slurm job" in log]
    assert len(ranks) == 3 and sum("== reference" in log for log in ranks) == 1
    assert sum("Ray runs on 2 nodes" in log for log in logs) == 1


def test_a_job_that_ends_before_the_command_begins_is_a_failure_with_its_log(jobs, monkeypatch):
    root = jobs.folder / "no-setup"
    monkeypatch.setenv("VCSOUP_SETUP", "echo wrong module; false")
    assert vcsoup(jobs, "submit", "recipe.yaml", "-d", str(root)).returncode == 0
    first = read_submissions(root)[0].id
    assert wait_for_end(first)["JobState"] == "FAILED"
    said = vcsoup(jobs, "status", "recipe.yaml", "-d", str(root)).stdout
    assert "read failed" in said and f"in job {first}" in said
    assert "ended before `vcsoup` began" in said and "wrong module" in said
    wait_for(lambda: "no jobs" in vcsoup(jobs, "cancel", "recipe.yaml", "-d", str(root)).stdout)


def test_what_slurm_would_refuse_leaves_the_queue_as_it_was(jobs):
    recipe = jobs.folder / "refused.yaml"
    text = (jobs.folder / "recipe.yaml").read_text()
    recipe.write_text(text.replace("launch: {", "launch: {slurm: {report: {partition: nowhere}}, "))
    root = jobs.folder / "refused"
    done = vcsoup(jobs, "submit", "refused.yaml", "-d", str(root))
    assert done.returncode == 2 and "partition" in done.stderr
    assert not (root / "jobs.json").exists()


def test_jobs_are_in_the_queue_with_the_reason_until_they_are_cancelled(jobs, monkeypatch):
    recipe, root = jobs.folder / "held.yaml", jobs.run_directory("held", "filtered", "filtered")
    recipe.write_text(RECIPE.replace("{ranks: 2}", "{ranks: 2, slurm: {reference: {hold: true}}}"))
    monkeypatch.setenv("VCSOUP_SETUP", "sleep 600")
    assert vcsoup(jobs, "submit", recipe, "-d", root).returncode == 0
    ids = {each.stage: each.id for each in read_submissions(root)}
    assert list(ids) == CHAIN[1:]
    wait_for(lambda: job(ids["filter"])["JobState"] == "RUNNING")
    said = vcsoup(jobs, "status", recipe, "-d", root).stdout
    assert f"{ids['reference']} (JobHeldUser)" in said
    assert f"{ids['train']}_0 (Dependency)" in said
    done = vcsoup(jobs, "cancel", recipe, "-d", root)
    assert done.stdout.startswith("cancelled ")
    wait_for(lambda: "no jobs" in vcsoup(jobs, "cancel", recipe, "-d", root).stdout)
    said = vcsoup(jobs, "status", recipe, "-d", root).stdout
    assert "pending" not in said
