"""Soups theta_0 + sum of lambda_i (theta_i - theta_0) of a recipe: `soup.box`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import write_pairs
from merging import bf16, files_of, read_all, write_policy

from vcsoup_dist.check.cost import estimate
from vcsoup_dist.identity import Hashes, Located
from vcsoup_dist.pipeline.graph import make_plan, reads, to_make
from vcsoup_dist.pipeline.run import make_missing
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.soup_manifest import read_manifest
from vcsoup_dist.souping.stage import make_share, publish_shares
from vcsoup_dist.souping.verify import verify_directory
from vcsoup_dist.theta_0 import local_folder
from vcsoup_dist.workspace import Product, Workspace

RECIPE = {
    "name": "x",
    "model": "base",
    "values": {
        "long": {"data": {"path": "pairs.jsonl"}, "reward": {"callable": "rewards.py:longer"}},
        "short": {"data": {"pairs_of": ["long"]}, "reward": {"callable": "rewards.py:shorter"}},
    },
}
BOX = {"box": [0, 1], "grid": 0.5}
SIMPLEX = {"grid": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A recipe's models and data, and `trained`: a run directory that has its policies."""
    folder = tmp_path_factory.mktemp("box")
    rng = np.random.default_rng(0)
    base = {f"layer.{i}": ("F32", rng.standard_normal((30, 7)).astype("<f4")) for i in range(3)}
    write_policy(folder / "base", base)
    write_pairs(folder / "pairs.jsonl", 5)
    (folder / "rewards.py").write_text("def longer(p, r): ...\ndef shorter(p, r): ...\n")
    recipe, plan = planned(folder)
    workspace = Workspace.open(folder / "trained", recipe)
    for product in (each for each in plan if each.stage == "train"):
        with workspace.publishing(product) as draft:
            draft.output.rmdir()
            write_policy(draft.output, {name: ("BF16", bf16(rng, 30, 7)) for name in base})
    return folder


def planned(folder: Path, soup: object = BOX, **changes: object) -> tuple[Recipe, list[Product]]:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE | {"soup": soup} | changes))
    recipe = load_recipe(file)
    return recipe, make_plan(recipe, Hashes(folder / "hashes.json"))


def merged(folder: Path, name: str, soup: object) -> Path:
    """The soups of a run directory of its own."""
    recipe, plan = planned(folder, soup)
    shutil.copytree(folder / "trained", folder / name)
    workspace = Workspace.open(folder / name, recipe)
    make_missing(recipe, workspace, plan, "merge")
    return folder / name / "soups" / "vc_soup" / "seed-0"


def numbers(model: Path) -> dict[str, np.ndarray]:
    """The tensors of a model in float64."""
    return {
        name: (np.frombuffer(raw, "<f4") if len(raw) == 840 else widened(raw)).astype(np.float64)
        for name, raw in read_all(model).items()
    }


def widened(raw: bytes) -> np.ndarray:
    return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")


def test_a_soup_is_theta_0_and_the_weighted_differences(folder):
    rows = [(0.3, 0.7), (0.8, 0.9), (0.5, 0.25), (-0.25, 0.5), (1.25, 0.0)]
    soups = merged(folder, "listed", {"weights": [list(row) for row in rows], "box": [-0.5, 1.5]})
    theta_0 = numbers(folder / "base")
    policies = [numbers(folder / f"trained/policies/vc_soup/{v}/seed-0") for v in ("long", "short")]
    assert len(list(soups.iterdir())) == len(rows)
    for row in rows:
        soup = soups / f"long-{row[0]:.2f}_short-{row[1]:.2f}"
        verify_directory(soup)
        for name, found in numbers(soup).items():
            exact = theta_0[name] + sum(
                weight * (policy[name] - theta_0[name])
                for weight, policy in zip(row, policies, strict=True)
            )
            # bf16 has 8 bits, so a rounded number is off by 2^-9 of it, or 2^-8 of a power of 2.
            assert np.all(np.abs(found - exact) <= 2.0**-8 * np.abs(exact) + 1e-12), (row, name)


def test_manifest_and_card_name_theta_0_where_it_was_read(folder):
    soups = merged(folder, "named", {"weights": [[0.3, 0.7], [0.8, 0.9]], "box": [0, 1]})
    beyond, inside = read_manifest(soups / "long-0.80_short-0.90"), soups / "long-0.30_short-0.70"
    assert {each.name: each.weight for each in beyond.sources} == {
        "long": 0.8, "short": 0.9, "theta_0": pytest.approx(-0.7)
    }  # fmt: skip
    assert beyond.lambdas == {"long": 0.8, "short": 0.9} and beyond.base == "theta_0"
    card = (soups / "long-0.80_short-0.90" / "README.md").read_text()
    assert "θ(λ) = θ₀ + Σ λᵢ (θᵢ − θ₀)" in card and "| theta_0 (θ₀) | | `" in card
    assert [each.name for each in read_manifest(inside).sources] == ["long", "short"]
    assert "θ₀" not in (inside / "README.md").read_text()


def test_soups_on_the_simplex_are_as_without_a_box(folder):
    plain = {p.name: p for p in planned(folder, SIMPLEX)[1]}
    box = {p.name: p for p in planned(folder)[1]}
    assert {p.fingerprint for p in plain.values()} - {p.fingerprint for p in box.values()} == {
        plain["report"].fingerprint
    }
    assert sum(p.stage == "merge" for p in box.values()) == 8
    with_box, without = merged(folder, "with", BOX), merged(folder, "without", SIMPLEX)
    assert len(list(with_box.iterdir())) == 8 and len(list(without.iterdir())) == 3
    for soup in without.iterdir():
        assert files_of(soup) == files_of(with_box / soup.name)


def test_theta_0_is_among_what_a_soup_beyond_the_simplex_is_made_from(folder):
    _, plan = planned(folder)
    for soup in (p for p in plan if p.stage == "merge"):
        beyond = sum(soup.weights) != 1
        assert list(soup.sources) == ["model"] * beyond
        assert ("model" in soup.made_from) == beyond
    recipe, plan = planned(folder, sft={}, keep={"soups": False})
    for evaluation in (p for p in plan if p.stage == "evaluate" and p.weights):
        (soup,) = evaluation.inputs_of("merge")
        beyond = sum(soup.weights) != 1
        assert len(soup.inputs_of("sft")) == beyond and not soup.sources
        stages = [each.stage for each in reads(evaluation, recipe)]
        # It is always compared with theta_0.
        assert stages.count("sft") == 1 and stages.count("train") == 2


def test_the_disk_and_the_passes_of_a_box_are_counted(folder, tmp_path):
    def cost(soup: object, soups: bool):
        recipe, plan = planned(folder, soup, keep={"soups": soups})
        workspace = Workspace.open(tmp_path / f"run-{soups}-{len(plan)}", recipe)
        assert len(to_make(plan, workspace, recipe)) > 8
        found = estimate(recipe, workspace, plan)
        return found.read_bytes, found.written_bytes, found.peak_disk_bytes, found.parameters * 2

    (*box, model), (*plain, _) = cost(BOX, True), cost(SIMPLEX, True)
    # Five more soups, in one more pass over two policies and theta_0; each is compared with it.
    assert np.subtract(box, plain).tolist() == [(3 + 5 + 5) * model, 5 * model, 5 * model]
    (*box, _), (*plain, _) = cost(BOX, False), cost(SIMPLEX, False)
    assert np.subtract(box, plain).tolist() == [5 * (3 + 1) * model, 0, 0]


def test_ranks_share_the_soups_of_a_box(folder):
    alone = merged(folder, "alone", BOX)
    recipe, plan = planned(folder)
    shutil.copytree(folder / "trained", folder / "shared")
    workspace = Workspace.open(folder / "shared", recipe)
    soups = [p for p in plan if p.stage == "merge"]
    for rank in (0, 1):
        make_share(recipe, workspace, soups, rank, 2)
    assert not (folder / "shared" / "soups").exists()
    publish_shares(recipe, workspace, soups, 2)
    shared = folder / "shared" / "soups" / "vc_soup" / "seed-0"
    for soup in alone.iterdir():
        assert files_of(soup) == files_of(shared / soup.name)


def test_theta_0_of_the_hub_is_taken_from_the_cache(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    shutil.copytree(folder / "base", snapshot)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert local_folder(Located("some/model", commit, {})) == snapshot
    assert json.loads((snapshot / "config.json").read_text())
