"""Jobs of the scripts of slurm/ on the two-node Slurm, and what Slurm says of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from conftest import save_tiny_model, write_pairs
from training_world import wait_for

ROOT = Path(__file__).parents[1]
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1"]

RECIPE = """
name: tiny
model: base
values:
  long:
    data: {path: pairs.jsonl, heldout_share: 0.2}
    reward: {columns: [long_chosen, long_rejected]}
    judge: {callable: "judge.py:never_called"}
  polite:
    data: {pairs_of: [long]}
    reward: {columns: [polite_chosen, polite_rejected]}
    judge: {callable: "judge.py:never_called"}
training:
  {dtype: fp32, learning_rate: 1.0e-3, pairs_per_step: 8, steps: 70, max_length: 64,
   checkpoint_every: 10, evaluate_every: 20, gradient_checkpointing: false}
soup: {grid: 0.5}
evaluation: {prompts: 4, max_prompt_tokens: 64, max_new_tokens: 4, dtype: fp32}
launch: {ranks: 2}
"""


class Jobs:
    """A recipe with filtered pairs, and jobs of the scripts on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_tiny_model(folder / "base")
        write_pairs(folder / "pairs.jsonl", 60)
        rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
        for row in rows:
            for side in ("chosen", "rejected"):
                row[f"long_{side}"] = len(row[side].split())
                row[f"polite_{side}"] = row[side].count("e") - row[side].count("o")
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "judge.py").write_text("def never_called(prompt, response):\n    return 0.0\n")
        (folder / "recipe.yaml").write_text(RECIPE)
        for stage in ("score", "filter"):
            self.vcsoup(stage, "recipe.yaml", "-d", "filtered")

    def vcsoup(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "vcsoup_dist.cli", *arguments]
        subprocess.run(command, cwd=self.folder, check=True)

    def run_directory(self, name: str, origin: str) -> Path:
        """A copy of another one without its policies."""
        shutil.copytree(
            self.folder / origin,
            self.folder / name,
            ignore=shutil.ignore_patterns("policies", "work", "logs"),
        )
        return self.folder / name

    def submit(self, root: Path, script: str, *arguments: str, options: list[str]) -> str:
        done = subprocess.run(
            ["sbatch", "--parsable", *options, ROOT / "slurm" / script, *arguments],
            cwd=self.folder,
            env={**os.environ, "VCSOUP_RUN_DIR": str(root), "VCSOUP_LOG_DIR": "job-logs"},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def log(self, name: str) -> str:
        return (self.folder / "job-logs" / name).read_text()


def job(number: str) -> dict[str, str]:
    """Slurm's record of a job."""
    command = ["scontrol", "show", "job", number, "--oneliner"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(field.split("=", 1) for field in said.split() if "=" in field)


def wait_for_end(number: str) -> dict[str, str]:
    active = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")
    wait_for(lambda: time.sleep(0.2) or job(number)["JobState"] not in active, 300)
    return job(number)


def start_now(number: str) -> None:
    """Start a requeued job, before which Slurm lets two minutes pass."""

    def starts() -> bool:
        time.sleep(2)  # within a second of the requeue a launch is refused, and fails the job
        subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"])
        return job(number)["JobState"] != "PENDING"  # a short one may have ended already

    wait_for(starts)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
