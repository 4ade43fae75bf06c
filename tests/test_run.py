"""The whole method end to end, on real Ray and real ZeRO-3 ranks; killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import save_tiny_model, write_pairs
from transformers import AutoModelForCausalLM

REWARDS = """
def longer(prompt, response):
    return float(len(response.split()))

def polite(prompt, response):
    return response.count("yes") - response.count("no") + 0.01 * len(response)
"""
RECIPE = """
name: tiny
model: base
values:
  long:
    data: {path: long.jsonl, heldout_share: 0.2}
    reward: {callable: "rewards.py:longer"}
  polite:
    data: {pairs_of: [long]}
    reward: {callable: "rewards.py:polite"}
scoring: {shard_pairs: 16}
training:
  {dtype: fp32, learning_rate: 1.0e-3, pairs_per_step: 8, steps: 40, max_length: 64,
   checkpoint_every: 4, evaluate_every: 20, gradient_checkpointing: false}
soup: {grid: 0.5}
evaluation:
  {prompts: 6, max_new_tokens: 12, max_prompt_tokens: 60, dtype: fp32, bootstrap: 100}
launch: {ranks: 2}
"""
NOT_PRODUCTS = ("work", "locks", "logs", "hashes.json")


class Run:
    """A recipe in a folder, run by the command that a user types."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.root = folder, folder / name
        self.marker = f"VCSOUP_TEST_RUN={uuid.uuid4()}"

    def start(self) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "vcsoup_dist.cli",
            "run",
            "recipe.yaml",
            "-d",
            str(self.root),
        ]
        name, value = self.marker.split("=")
        log = open(self.root.with_suffix(".log"), "ab")  # noqa: SIM115 - the child's
        return subprocess.Popen(
            command, cwd=self.folder, env={**os.environ, name: value}, stdout=log, stderr=log
        )

    def finish(self) -> str:
        process = self.start()
        code = process.wait(timeout=400)
        log = self.root.with_suffix(".log").read_text()
        assert code == 0, log
        return log

    def kill_when(self, pattern: str) -> None:
        """SIGKILL the command once a path below the run directory is there."""
        process = self.start()
        deadline = time.monotonic() + 300
        while not list(self.root.glob(pattern)):
            assert process.poll() is None, f"{pattern} never came"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def processes(self) -> list[str]:
        """Commands of all processes that inherited this run's mark: ranks, actors, Ray's own."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and self.marker.encode() in (entry / "environ").read_bytes()
                ):
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    if state != "Z":
                        command = (entry / "cmdline").read_bytes()
                        found.append(command.replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return found

    def products(self) -> dict[str, bytes]:
        files = [path for path in self.root.rglob("*") if path.is_file()]
        relative = {str(path.relative_to(self.root)): path for path in files}
        return {
            name: path.read_bytes()
            for name, path in sorted(relative.items())
            if not name.startswith(NOT_PRODUCTS)
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_tiny_model(folder / "base")
    write_pairs(folder / "long.jsonl", 60)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder) -> Run:
    run = Run(folder, "undisturbed")
    run.finish()
    return run


def test_a_run_ends_with_a_front_a_report_and_loadable_soups(undisturbed):
    root = undisturbed.root
    summary = json.loads((root / "report" / "summary.json").read_text())
    assert [row["method"] for row in summary["rows"]] == [None] + ["vc_soup"] * 3
    assert summary["methods"][0]["hypervolume"] > 0
    page = (root / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert "theta_0" in (root / "report" / "table.txt").read_text()
    soups = sorted((root / "soups" / "vc_soup" / "seed-0").iterdir())
    assert len(soups) == 3
    middle = AutoModelForCausalLM.from_pretrained(soups[1]).state_dict()
    ends = [
        AutoModelForCausalLM.from_pretrained(root / "policies" / "vc_soup" / value / "seed-0")
        for value in ("long", "polite")
    ]
    for name, tensor in middle.items():
        mean = sum(end.state_dict()[name].double() for end in ends) / 2
        assert torch.equal(tensor, mean.to(tensor.dtype)), name
    assert undisturbed.processes() == []


def test_borrowed_pairs_are_swapped_to_what_the_values_own_reward_prefers(undisturbed):
    file = undisturbed.root / "filtered/vc_soup/polite/pairs-00000.parquet"
    rows = pq.read_table(file).to_pylist()
    assert rows
    assert all(row["gap_polite"] > 0 for row in rows)
    assert {row["swapped"] for row in rows} == {True, False}


def test_run_again_there_is_nothing_to_do(undisturbed):
    before = undisturbed.products()
    assert "nothing to do" in undisturbed.finish().splitlines()[-12:].__str__()
    assert undisturbed.products() == before


KILLED_AT = {
    "scoring": "work/scores/long/polite/output/*",
    "training": "work/policies/vc_soup/long/seed-0/scratch/step-????????/COMPLETE",
    "evaluation": "work/evaluation/*/*/*/output/answers.parquet",
}


def test_killed_in_three_stages_it_ends_with_the_same_bytes(folder, undisturbed):
    run = Run(folder, "killed")
    for pattern in KILLED_AT.values():
        run.kill_when(pattern)
        deadline = time.monotonic() + 15
        while run.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert run.processes() == []
        # Nothing half-made passes for a product.
        theirs = undisturbed.products()
        for record in run.root.rglob("product.json"):
            product = str(record.parent.relative_to(run.root))
            if not product.startswith("work"):
                whole = {name for name in theirs if name.startswith(f"{product}/")}
                assert {name for name in run.products() if name.startswith(f"{product}/")} == whole
        assert not (run.root / "report").exists()
    answered = next(run.root.glob(KILLED_AT["evaluation"]))
    written = answered.stat().st_mtime_ns
    log = run.finish()
    assert "resumed after step" in log
    final = run.root / answered.relative_to(run.root / "work").parent.parent / answered.name
    assert final.stat().st_mtime_ns == written
    ours = run.products()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_a_changed_recipe_remakes_only_what_it_touches(folder, undisturbed):
    recipe = folder / "recipe.yaml"
    before = {
        name: (undisturbed.root / name).stat().st_mtime_ns
        for name in undisturbed.products()
        if name.endswith("product.json")
    }
    try:
        recipe.write_text(RECIPE.replace("max_new_tokens: 12", "max_new_tokens: 10"))
        undisturbed.finish()
        remade = {
            name.rsplit("/", 1)[0]
            for name, time_ in before.items()
            if (undisturbed.root / name).stat().st_mtime_ns != time_
        }
        assert remade == {"evaluation/base", "report"} | {
            f"evaluation/vc_soup/seed-0/{each.name}"
            for each in (undisturbed.root / "soups/vc_soup/seed-0").iterdir()
        }
    finally:
        recipe.write_text(RECIPE)
