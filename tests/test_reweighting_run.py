"""Rivals that reweight pairs, from the pairs to the report: real Ray, real ZeRO-3 ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import vcsoup
from conftest import save_tiny_model, write_pairs

from vcsoup_dist.recipe import Training
from vcsoup_dist.records.reference import Reference
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.records.union import UnionManifest
from vcsoup_dist.training.batches import step_pairs

pytestmark = [pytest.mark.ray, pytest.mark.ranks, pytest.mark.models]

REWARDS = """
def longer(prompt, response):
    return float(len(response.split()))

def polite(prompt, response):
    return response.count("yes") - response.count("no") + 0.01 * len(response)
"""
STEPS = {"dtype": "fp32", "learning_rate": 1e-3, "pairs_per_step": 8, "steps": 2, "max_length": 64}
RECIPE = {
    "name": "rivals",
    "model": "base",
    "values": {
        name: {
            "data": {"path": f"{name}.jsonl", "heldout_share": 0.2},
            "reward": {"callable": f"rewards.py:{name}"},
        }
        for name in ("longer", "polite")
    },
    "training": STEPS | {"gradient_checkpointing": False},
    "reweighting": {"weights": [[0.25, 0.75]]},
    "evaluation": {
        "prompts": 2, "max_new_tokens": 4, "max_prompt_tokens": 60, "dtype": "fp32",
        "bootstrap": 100,
    },
    "launch": {"ranks": 2},
    "keep": {"checkpoints": True},
}  # fmt: skip
RIVALS = ("relabelled", "loss_weighting", "own", "scalarised", "modpo")
METHODS = {name: {} for name in RIVALS} | {"own": {"kind": "loss_weighting", "labels": "own"}}
LAMBDA = "longer-0.25_polite-0.75"


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_address) -> Path:
    folder = tmp_path_factory.mktemp("rivals")
    save_tiny_model(folder / "base")
    (folder / "rewards.py").write_text(REWARDS)
    for seed, name in enumerate(("longer", "polite")):
        write_pairs(folder / f"{name}.jsonl", 50, seed)
    write(folder, {"modpo": {}})
    vcsoup("run", "recipe.yaml", "-d", "run", folder=folder, RAY_ADDRESS=ray_address)
    return folder / "run"


def write(folder: Path, methods: dict) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"methods": methods}))


@pytest.fixture(scope="module")
def with_all(run, ray_address) -> Path:
    """The run, to which the other methods are added."""
    before, parts = finished(run), reference_files(run)
    write(run.parent, METHODS)
    vcsoup("run", "recipe.yaml", "-d", "run", folder=run.parent, RAY_ADDRESS=ray_address)
    after = finished(run)
    changed = {name for name, written in before.items() if after[name] != written}
    # They read pairs that the first does not, whose log-probs come into new files.
    assert changed == {"report", "reference/longer", "reference/polite"}
    assert reference_files(run).items() > parts.items()
    return run


def reference_files(run: Path) -> dict[str, tuple[int, bytes]]:
    """Of every file of a part of the reference, its inode and what is in it."""
    files = [each for each in run.glob("reference/*/part-*/*")]
    return {str(each): (each.stat().st_ino, each.read_bytes()) for each in files}


def finished(run: Path) -> dict[str, int]:
    """When each product was written, by name."""
    files = [each for each in run.rglob("product.json") if "work" not in each.parts]
    return {str(each.parent.relative_to(run)): each.stat().st_mtime_ns for each in files}


def test_a_rival_added_to_a_finished_run_makes_its_own_policies_and_ends_in_the_same_table(
    with_all,
):
    summary = json.loads((with_all / "report" / "summary.json").read_text())
    assert {row["method"] for row in summary["rows"]} == {None, *METHODS}
    assert all(
        row["weights"] in (None, {"longer": 0.25, "polite": 0.75}) for row in summary["rows"]
    )
    assert summary["edges"] == []
    assert {each.name for each in (with_all / "policies").iterdir()} == set(METHODS)


def test_reference_log_probs_are_of_the_pairs_that_policies_read_and_no_others(with_all):
    folders = {name: with_all / "tokens" / name for name in ("longer", "polite")}
    tokens = [TokenFile(folder) for folder in folders.values()]
    read = {
        (int(row["dataset"]), int(row["row"]))
        for name in RIVALS
        for file in ("train", "heldout")
        for row in np.load(
            with_all / "work/policies" / name / LAMBDA / "seed-0/scratch" / f"{file}.npy"
        )
    }
    for dataset, (name, file) in enumerate(zip(folders, tokens, strict=True)):
        rows = Reference(with_all / "reference" / name, file).rows().tolist()
        assert sorted(rows) == sorted(row for number, row in read if number == dataset)


def test_the_first_loss_follows_from_labels_margins_weights_and_divisor(with_all):
    """At the start h = 0, so it is known without the model."""
    for method in RIVALS:
        name = f"policies/{method}/{LAMBDA}/seed-0"
        rows = np.load(with_all / "work" / name / "scratch" / "train.npy")
        lines = (with_all / "logs" / name / "metrics.jsonl").read_text().splitlines()
        taken = rows[step_pairs(len(rows), Training(**STEPS).pairs_per_step, 0, 0)]
        divisor = 0.25 if method == "modpo" else 1.0
        z = -taken["margin"] / divisor
        losses = taken["label"] * np.logaddexp(0, -z) + (1 - taken["label"]) * np.logaddexp(0, z)
        expected = float((taken["weight"] * losses).mean())
        assert json.loads(lines[0])["loss"] == pytest.approx(expected, abs=2e-5)
        assert (rows["label"] >= 0.5).all()


def test_the_union_has_the_pairs_of_both_datasets_and_its_temperatures_are_shown(with_all):
    manifest = UnionManifest.read(with_all / "union")
    assert manifest.values == ["longer", "polite"] and manifest.without_reward == 0
    assert manifest.pairs <= manifest.rows == sum(manifest.usable.values())
    trained = {
        name: TrainingSummary.read(with_all / "policies" / name / LAMBDA / "seed-0").pairs
        for name in RIVALS
    }
    assert trained["loss_weighting"] == trained["scalarised"] == manifest.pairs
    assert trained["own"] == manifest.rows and trained["modpo"] == manifest.usable["longer"]
    assert manifest.pairs // 2 < trained["relabelled"] <= manifest.pairs
    page = (with_all / "report" / "index.html").read_text()
    assert "temperature" in page
