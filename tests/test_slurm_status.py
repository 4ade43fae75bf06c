"""`vcsoup status` with jobs in the queue of a real Slurm."""

from __future__ import annotations

import subprocess

import pytest
from test_status import LONG, POLITE, Run

from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.slurm_jobs.submissions import Submission, mark_of, note_submissions
from vcsoup_dist.workspace import Workspace

pytestmark = pytest.mark.usefixtures("slurm")


def test_jobs_in_the_queue_are_pending_with_the_reason(tmp_path):
    run = Run(tmp_path)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    workspace = Workspace.open(run.root, recipe)
    plan = make_plan(recipe, Hashes(run.root / "hashes.json"))
    tasks = [{each.name: each.fingerprint} for each in plan if each.name in (LONG, POLITE)]
    command = ["sbatch", "--parsable", "--hold", "--array=0-1", "--output=/dev/null"]
    done = subprocess.run(
        [*command, f"--comment={mark_of(workspace.root)}", "--wrap=true"],
        check=True,
        capture_output=True,
        text=True,
    )
    job = done.stdout.strip()
    note_submissions(run.root, Submission(job, "train", tasks, [], ""))
    try:
        status = run.status()
        assert status["train"][:2] == ["pending", "0 of 2"]
        assert f"{job}_0 (JobHeldUser)" in status["train"][2]
        assert status["score"][0] == "to do"
    finally:
        subprocess.run(["scancel", job], check=True)
    assert run.status()["train"] == ["to do", "0 of 2", "", ""]
