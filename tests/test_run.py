"""The whole method end to end, on real Ray and real ZeRO-3 ranks; killed and resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from command import VCSOUP, vcsoup
from conftest import save_tiny_model, write_pairs
from fork_server import server
from scoring_world import alive, descendants
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.ray, pytest.mark.ranks, pytest.mark.kills, pytest.mark.models]

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
  {dtype: fp32, learning_rate: 1.0e-3, pairs_per_step: 8, steps: 20, max_length: 64,
   checkpoint_every: 4, evaluate_every: 10, gradient_checkpointing: false}
soup: {grid: 0.5}
evaluation:
  {prompts: 4, max_new_tokens: 8, max_prompt_tokens: 60, dtype: fp32, bootstrap: 100}
launch: {ranks: 2}
"""
NOT_PRODUCTS = ("work", "locks", "logs", "hashes.json")
COST = re.compile(rb'<section id="cost">.*?</section>', re.DOTALL)
"""Of the report: it says how long steps took."""


class Run:
    """A recipe in a folder, run by the command that a user types."""

    def __init__(self, folder: Path, name: str, address: str) -> None:
        self.folder, self.root, self.address = folder, folder / name, address
        self.mark = str(uuid.uuid4())

    def finish(self) -> str:
        """On the running cluster; what it printed."""
        command = ("run", "recipe.yaml", "-d", self.root, "--address", self.address)
        return vcsoup(*command, folder=self.folder, VCSOUP_TEST_RUN=self.mark)

    def kill_when(self, pattern: str) -> list[int]:
        """SIGKILL the command, with a Ray of its own, once a path below the run directory is there.

        Returns the processes that it had started.
        """
        environment = os.environ | {"VCSOUP_TEST_RUN": self.mark}
        environment.pop("RAY_ADDRESS", None)
        command = [VCSOUP, "run", "recipe.yaml", "-d", str(self.root)]
        with open(self.root.with_suffix(".log"), "ab") as log:
            files = [0, log.fileno(), log.fileno()]
            process = server().start(
                "run", command, folder=self.folder, environment=environment, files=files
            )
        wait_until(lambda: bool(list(self.root.glob(pattern))) or not alive(process.pid))
        assert list(self.root.glob(pattern)), self.root.with_suffix(".log").read_text()
        family = descendants(process.pid)
        process.kill()
        return family

    def processes(self) -> list[str]:
        """Commands of all processes that were started with this run's mark: actors, Ray's own."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
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
            name: COST.sub(b"", path.read_bytes())
            for name, path in sorted(relative.items())
            if not name.startswith(NOT_PRODUCTS)
        }


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_tiny_model(folder / "base")
    write_pairs(folder / "long.jsonl", 60)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder, ray_address) -> Run:
    run = Run(folder, "undisturbed", ray_address)
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


def test_prompts_that_do_not_fit_the_model_are_refused_before_anything_is_scored(folder):
    longest = ("--set", "evaluation.max_prompt_tokens=100000")
    printed = vcsoup("run", "recipe.yaml", "-d", "refused", *longest, folder=folder, code=2)
    assert "evaluation.max_prompt_tokens: 100000" in printed
    assert not list((folder / "refused").glob("pairs/*"))


def test_run_again_there_is_nothing_to_do(undisturbed):
    before = undisturbed.products()
    assert "nothing to do" in undisturbed.finish()
    assert undisturbed.products() == before


def test_a_finished_run_names_the_command_that_picks_a_model_and_it_does(undisturbed):
    root = undisturbed.root
    said = [undisturbed.finish(), vcsoup("status", root, folder=undisturbed.folder)]
    (named,) = {re.search(r"^use a model: vcsoup (pick .*)$", each, re.M)[1] for each in said}
    assert all(f"report: {root}/report/index.html" in each for each in said)
    picked = vcsoup(*named.split(), folder=undisturbed.folder)
    assert len(list(root.glob("picked/vc_soup/seed-0/*/README.md"))) == 1, picked
    page = (root / "report" / "index.html").read_text()
    assert "<code>vcsoup pick recipe.yaml --balanced" in page
    shutil.rmtree(root / "picked")
    pages = vcsoup("filter", "recipe.yaml", "-d", root, folder=undisturbed.folder).splitlines()[-2:]
    assert [Path(each.removeprefix("page: ")).is_file() for each in pages] == [True, True]


KILLED_AT = {
    "scoring": "work/scores/long/polite/output/*",
    "training": "work/policies/vc_soup/long/seed-0/scratch/step-????????/COMPLETE",
    "evaluation": "work/evaluation/*/*/*/output/answers.parquet",
}


@pytest.mark.timeout(1200)
def test_killed_in_three_stages_it_ends_with_the_same_bytes(folder, undisturbed, ray_address):
    run = Run(folder, "killed", ray_address)
    for pattern in KILLED_AT.values():
        family = run.kill_when(pattern)
        assert family
        wait_until(lambda: not run.processes() and not any(map(alive, family)))  # noqa: B023
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
    run.finish()
    assert "resumed after step" in run.root.with_suffix(".log").read_text()
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
        recipe.write_text(RECIPE.replace("max_new_tokens: 8", "max_new_tokens: 6"))
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
