"""Jobs of the scripts of slurm/ on the two-node Slurm, and what Slurm says of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from functools import cached_property
from pathlib import Path

from command import vcsoup
from conftest import save_tiny_model, write_pairs
from training_world import wait_for

ROOT = Path(__file__).parents[1]
CHAIN = ["score", "filter", "reference", "train", "merge", "evaluate", "report"]
"""All jobs of a run, in order."""
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1"]

RECIPE = """
name: tiny
model: base
values:
  long:
    data: {path: pairs.jsonl, heldout_share: 0.2}
    reward: {columns: [long_chosen, long_rejected]}
    judge: {callable: "judge.py:longer"}
  polite:
    data: {pairs_of: [long]}
    reward: {columns: [polite_chosen, polite_rejected]}
    judge: {callable: "judge.py:longer"}
training:
  {dtype: fp32, learning_rate: 1.0e-3, pairs_per_step: 8, steps: 50, max_length: 64,
   checkpoint_every: 10, evaluate_every: 20, gradient_checkpointing: false}
soup: {grid: 0.5}
evaluation:
  {actors: 2, cpus_per_actor: 2, prompts: 4, max_prompt_tokens: 64, max_new_tokens: 4, dtype: fp32,
   bootstrap: 100}
launch: {ranks: 2}
"""


class Jobs:
    """A recipe with filtered pairs in the run directory `filtered`, and jobs of the scripts."""

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
        (folder / "judge.py").write_text(
            "def longer(prompt, response):\n    return float(len(response.split()))\n"
        )
        (folder / "recipe.yaml").write_text(RECIPE)
        for stage in ("score", "filter"):
            self.vcsoup(stage, "recipe.yaml", "-d", "filtered")

    @cached_property
    def local(self) -> Path:
        """A run directory with all that the recipe asks for, made here without Slurm."""
        root = self.run_directory("local", "filtered")
        self.vcsoup("run", "recipe.yaml", "-d", "local")
        return root

    def vcsoup(self, *arguments: str) -> None:
        vcsoup(*arguments, folder=self.folder)

    def run_directory(self, name: str, origin: str, without: str = "policies") -> Path:
        """A copy of another one, without some of its folders."""
        ignore = shutil.ignore_patterns(*without.split(), "work", "logs", "locks")
        return Path(shutil.copytree(self.folder / origin, self.folder / name, ignore=ignore))

    def submit(
        self, root: Path, script: str | Path, *arguments: str, options: list[str], **variables: str
    ) -> str:
        """Submit a script of slurm/, or another one; returns the job's id."""
        ours = {"VCSOUP_RUN_DIR": str(root), "VCSOUP_LOG_DIR": "job-logs"}
        done = subprocess.run(
            ["sbatch", "--parsable", *options, ROOT / "slurm" / script, *arguments],
            cwd=self.folder,
            env={**os.environ, **ours, **variables},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def log(self, number: str, restart: int = 0) -> str:
        """All logs of one start of a job, each below its name."""
        found = (self.folder / "job-logs").glob(f"*-{number}-*-{restart}.log")
        return "\n".join(f"{each.name}:\n{each.read_text()}" for each in sorted(found))


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
        time.sleep(1.1)  # within a second of the requeue a launch is refused, and fails the job
        subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"])
        return job(number)["JobState"] != "PENDING"  # a short one may have ended already

    wait_for(starts)


def products(root: Path, *folders: str) -> dict[str, bytes]:
    """All files of some folders of a run directory."""
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    assert files
    return {str(path.relative_to(root)): path.read_bytes() for path in files}
