"""Evaluation of soups that are never written gives the same answers as of written ones."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import save_tiny_model, write_pairs

from vcsoup_dist.check.cost import estimate
from vcsoup_dist.checkpoints.auxiliary_files import copy_auxiliary_files
from vcsoup_dist.checkpoints.layout import read_layout
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.writer import ShardFile, plan_shards
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan, to_make
from vcsoup_dist.pipeline.run import make_missing
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.heldout_logps import HELDOUT_LOGPS, HeldoutLogps
from vcsoup_dist.souping.kernels.kernel import weighted_sum
from vcsoup_dist.workspace import Product, Workspace

pytestmark = pytest.mark.models

RECIPE = {
    "name": "x",
    "model": "base",
    "values": {
        "long": {
            "data": {"path": "pairs.jsonl", "heldout_share": 0.2},
            "reward": {"callable": "rewards.py:longer"},
        },
        "short": {"data": {"pairs_of": ["long"]}, "reward": {"callable": "rewards.py:shorter"}},
    },
    "methods": ["vc_soup", "rewarded_soup"],
    "soup": {"weights": [[0.3, 0.7], [0.9, 0.8], [1, 0], [0.5, 0], [0.6, 0.4]], "box": [0, 1]},
    "evaluation": {
        "prompts": 4,
        "heldout_pairs": 3,
        "max_new_tokens": 8,
        "max_prompt_tokens": 60,
        "dtype": "fp32",
    },
}
REWARDS = """
def longer(prompt, response):
    return float(len(response.split()))
def shorter(prompt, response):
    return -float(len(response))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("virtual")
    save_tiny_model(folder / "base")
    write_pairs(folder / "pairs.jsonl", 40)
    (folder / "rewards.py").write_text(REWARDS)
    return folder


def planned(folder: Path, soups: bool, **changes) -> tuple[Recipe, list[Product]]:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE | {"keep": {"soups": soups}} | changes))
    recipe = load_recipe(file)
    return recipe, make_plan(recipe, Hashes(folder / "hashes.json"))


def write_soup(folder: Path, policies: list[Path], weights) -> None:
    layouts = [read_layout(policy) for policy in policies]
    [shard] = plan_shards([(s.name, s.dtype, s.shape) for s in layouts[0].values()], 10**9)
    with ShardFile.create(folder, shard) as file:
        for name, spec in layouts[0].items():
            chunks = [np.empty(spec.nbytes, np.uint8) for _ in policies]
            for layout, chunk in zip(layouts, chunks, strict=True):
                with CheckpointReader(layout) as reader:
                    reader.read_into(name, 0, chunk)
            out = np.empty(spec.nbytes, np.uint8)
            dtypes = [spec.dtype] * len(policies)
            weighted_sum(chunks, dtypes, np.array([weights]), spec.dtype, [out])
            file.write(name, 0, out)
    copy_auxiliary_files(policies[0], folder)


def pretend_trained(workspace: Workspace, plan: list[Product]) -> None:
    """Random policies, and nothing of what they would be made from but the pairs."""
    for seed, product in enumerate(each for each in plan if each.stage == "train"):
        with workspace.publishing(product) as draft:
            save_tiny_model(draft.output, seed + 1)


def evaluations(workspace: Workspace) -> dict[str, bytes]:
    return {
        str(file.relative_to(workspace.root)): file.read_bytes()
        for file in sorted((workspace.root / "evaluation").rglob("*"))
        if file.is_file()
    }


@pytest.mark.ray
def test_answers_are_the_same_bytes_and_no_soup_is_on_disk(folder, on_shared_ray):
    recipe, plan = planned(folder, soups=False)
    virtual = Workspace.open(folder / "virtual", recipe)
    make_missing(recipe, virtual, plan, "score", lambda each: each.stage == "read")
    make_missing(recipe, virtual, plan, "filter", lambda each: each.stage == "tokens")
    pretend_trained(virtual, plan)
    shutil.copytree(virtual.root, folder / "written")
    make_missing(recipe, virtual, plan, "evaluate")
    assert not (virtual.root / "soups").exists()
    assert not list(virtual.root.rglob("work/soups"))

    recipe, plan = planned(folder, soups=True)
    written = Workspace.open(folder / "written", recipe)
    for product in (each for each in plan if each.stage == "merge"):
        with written.publishing(product) as draft:
            policies = [written.need(each) for each in product.inputs_of("train")]
            rest = math.fsum([1, *(-weight for weight in product.weights)])
            rest = rest if abs(rest) > 1e-6 else 0
            write_soup(draft.output, [*policies, folder / "base"], (*product.weights, rest))
    make_missing(recipe, written, plan, "evaluate")
    assert evaluations(virtual) == evaluations(written)
    answers = [
        pq.read_table(file)["answer"].to_pylist()
        for file in sorted(virtual.root.rglob("answers.parquet"))
    ]
    assert len(answers) == 11  # of theta_0, and of five soups of each method
    assert len({tuple(each) for each in answers}) == 11
    ratios = {
        file.parent.name: pc.subtract(table["logp"], table["logp_theta_0"]).to_pylist()
        for file in virtual.root.rglob("answers.parquet")
        for table in [pq.read_table(file)]
    }
    # theta_0 is itself; all others are compared with it, also after it took their place.
    assert set(ratios.pop("base")) == {0.0}
    assert all(0.0 not in each for each in ratios.values())
    logps = [HeldoutLogps.read(file.parent) for file in virtual.root.rglob(HELDOUT_LOGPS)]
    assert len(logps) == 7  # of theta_0, and of those on the line between the two policies
    assert {each.logps.shape for each in logps} == {(3, 2)}
    assert len({each.logps.tobytes() for each in logps}) == 7

    # Nothing is made anew, whichever way the recipe says it.
    assert not [each for each in to_make(plan, virtual, recipe) if each.stage == "evaluate"]


def test_what_a_run_without_soups_makes_reads_and_takes_of_the_disk(folder, tmp_path):
    recipe, plan = planned(folder, soups=False)
    kept, same = planned(folder, soups=True)
    assert [each.fingerprint for each in plan] == [each.fingerprint for each in same]
    workspace = Workspace.open(tmp_path / "run", recipe)
    due = to_make(plan, workspace, recipe)
    assert {each.name for each in plan if each.stage != "merge"} == {each.name for each in due}
    without, with_soups = (estimate(each, workspace, plan) for each in (recipe, kept))
    model = without.parameters * 2
    assert with_soups.written_bytes - without.written_bytes == 10 * model
    assert with_soups.peak_disk_bytes - without.peak_disk_bytes == 10 * model
    # Either 6 soups of 2 policies, and 4 of these and theta_0; or 2 passes of each kind, and 10.
    of_passes = 2 * 2 + 2 * 3
    assert without.read_bytes - with_soups.read_bytes == (6 * 2 + 4 * 3 - of_passes - 10) * model
