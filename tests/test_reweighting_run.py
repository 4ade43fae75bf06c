"""Rivals that reweight pairs, from the pairs to the report: real Ray, real ZeRO-3 ranks."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from command import VCSOUP, vcsoup
from conftest import save_tiny_model, write_pairs
from fork_server import server
from training_world import wait_for
from transformers import AutoModelForCausalLM, AutoTokenizer

from vcsoup_dist.forward.template import Encoded
from vcsoup_dist.in_context.prompts import written_score
from vcsoup_dist.recipe import Training
from vcsoup_dist.records.answers import Answers
from vcsoup_dist.records.reference import PartManifest, Reference
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
    "soup": {"weights": [[0.25, 0.75]]},
    "evaluation": {
        "prompts": 2, "max_new_tokens": 4, "max_prompt_tokens": 60, "dtype": "fp32",
        "bootstrap": 100,
    },
    "launch": {"ranks": 2},
    "keep": {"checkpoints": True},
}  # fmt: skip
RIVALS = ("relabelled", "loss_weighting", "own", "scalarised", "modpo", "implicit")
OPTIONS = {
    "own": {"kind": "loss_weighting", "labels": "own"},
    "implicit": {"kind": "modpo", "rewards": "implicit"},
    "rewards_in_context": {"learning_rate": 1e-2, "template": "big {longer} new {polite}"},
    "rewarded_soup": {"learning_rate": 0.1, "beta": 0.3},
}
METHODS = {name: {} for name in RIVALS} | OPTIONS
LAMBDA = "longer-0.25_polite-0.75"


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_address) -> Path:
    folder = tmp_path_factory.mktemp("rivals")
    save_tiny_model(folder / "base", more_words=[f"{i / 10:.1f}" for i in range(-60, 61)])
    (folder / "rewards.py").write_text(REWARDS)
    for seed, name in enumerate(("longer", "polite")):
        write_pairs(folder / f"{name}.jsonl", 50, seed)
    write(folder, {"modpo": {}})
    vcsoup("run", "recipe.yaml", "-d", "run", folder=folder, RAY_ADDRESS=ray_address)
    shutil.copytree(folder / "run", folder / "first")
    return folder / "run"


def write(folder: Path, methods: dict, name: str = "recipe", **training: object) -> None:
    content = RECIPE | {"methods": methods, "training": RECIPE["training"] | training}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


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
    read = rows_read(with_all, *(f"{name}/{LAMBDA}" for name in RIVALS))
    for dataset, (name, file) in enumerate(zip(folders, tokens, strict=True)):
        alone = {(dataset, row) for _, row in rows_read(with_all, f"rewarded_soup/{name}")}
        rows = Reference(with_all / "reference" / name, file).rows().tolist()
        assert sorted(rows) == sorted(row for number, row in read | alone if number == dataset)


def rows_read(run: Path, *policies: str) -> set[tuple[int, int]]:
    """Place of the dataset among a policy's, and row in its token file."""
    return {
        (int(row["dataset"]), int(row["row"]))
        for name in policies
        for file in ("train", "heldout")
        for row in np.load(run / "work/policies" / name / "seed-0/scratch" / f"{file}.npy")
    }


def test_implicit_margins_are_of_a_plain_model_of_the_other_value_and_of_no_more_pairs(with_all):
    """lambda_j beta_j [log pi_j/pi_0 (chosen) - log pi_j/pi_0 (rejected)], by transformers."""
    place = f"implicit/{LAMBDA}"
    tokens = TokenFile(with_all / "tokens" / "longer")
    under = with_all / "logps/rewarded_soup/polite/seed-0"
    assert [each.name for each in under.iterdir()] == ["longer"]
    read = rows_read(with_all, place)
    assert {(0, row) for row in Reference(under / "longer", tokens).rows().tolist()} == read
    policy = with_all / "policies/rewarded_soup/polite/seed-0"
    models = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        for folder in (policy, with_all.parent / "base")
    ]

    def log_ratio(side: Encoded) -> float:
        ids = torch.tensor([[int(each) for each in side.ids]])
        with torch.no_grad():
            logps = [each(ids).logits[0, :-1].log_softmax(-1) for each in models]
        of, base = (each.gather(1, ids[0, 1:, None])[side.start - 1 :].sum() for each in logps)
        return float(of - base)

    rows = np.load(with_all / "work/policies" / place / "seed-0/scratch/train.npy")
    assert np.ptp(rows["margin"]) > 0.01 and set(rows["label"]) == {1.0}
    for row in rows[:8]:
        chosen, rejected = tokens.pair(int(row["row"]))
        expected = 0.75 * 0.3 * (log_ratio(chosen) - log_ratio(rejected))
        assert float(row["margin"]) == pytest.approx(expected, abs=1e-4)


def test_the_first_loss_follows_from_labels_margins_weights_and_divisor(with_all):
    """At the start h = 0, so it is known without the model."""
    for method in RIVALS:
        name = f"policies/{method}/{LAMBDA}/seed-0"
        rows = np.load(with_all / "work" / name / "scratch" / "train.npy")
        lines = (with_all / "logs" / name / "metrics.jsonl").read_text().splitlines()
        taken = rows[step_pairs(len(rows), Training(**STEPS).pairs_per_step, 0, 0)]
        divisor = 0.25 if method in ("modpo", "implicit") else 1.0
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
    assert trained["own"] == manifest.rows
    assert trained["modpo"] == trained["implicit"] == manifest.usable["longer"]
    assert manifest.pairs // 2 < trained["relabelled"] <= manifest.pairs
    page = (with_all / "report" / "index.html").read_text()
    assert "temperature" in page


def scores_of(run: Path) -> dict[tuple[str, str], dict[str, float]]:
    """(prompt, answer) -> its standardised rewards, by the definition of these."""
    spec = importlib.util.spec_from_file_location("rewards", run.parent / "rewards.py")
    assert spec is not None and spec.loader is not None
    rewards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rewards)
    manifest = UnionManifest.read(run / "union")
    found = {}
    for name in ("longer", "polite"):
        for line in (run.parent / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            for answer in (row["chosen"], row["rejected"]):
                found[row["prompt"], answer] = {
                    value: (getattr(rewards, value)(None, answer) - manifest.mean[value])
                    / manifest.std[value]
                    for value in manifest.values
                }
    return found


def test_rewards_in_context_learns_both_answers_of_every_pair_after_their_scores(with_all):
    """Its first loss is that of a plain transformers model on the texts, put together by hand."""
    place = "policies/rewards_in_context/union/seed-0"
    rows = np.load(with_all / "work" / place / "scratch" / "train.npy")
    manifest = UnionManifest.read(with_all / "union")
    assert len(rows) == 2 * manifest.pairs and rows["swapped"].sum() == manifest.pairs
    summary = TrainingSummary.read(with_all / place)
    assert (summary.steps, summary.pairs) == (2 * STEPS["steps"], len(rows))
    tokenizer = AutoTokenizer.from_pretrained(with_all.parent / "base")
    model = AutoModelForCausalLM.from_pretrained(with_all.parent / "base")
    files = [TokenFile(with_all / "in_context" / "rewards_in_context" / n) for n in manifest.values]
    texts = {
        (
            f"<|user|> {prompt} big {written_score(scores['longer'])} new "
            f"{written_score(scores['polite'])} <|end|> <|assistant|>",
            f"{answer} <|end|>",
        )
        for (prompt, answer), scores in scores_of(with_all).items()
    }
    nats, count = 0.0, 0
    for dataset, row, swapped, *_ in rows[step_pairs(len(rows), 2 * 8, 0, 0)].tolist():
        side = files[dataset].pair(row)[int(swapped)]
        ids = torch.tensor([[int(each) for each in side.ids]])
        halves = tokenizer.decode(ids[0, : side.start]), tokenizer.decode(ids[0, side.start :])
        assert halves in texts
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1)
        nats -= float(logps.gather(1, ids[0, 1:, None])[side.start - 1 :].sum())
        count += side.answer_length
    first = json.loads((with_all / "logs" / place / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(nats / count, abs=1e-4)


def test_a_trade_off_is_a_prompt_and_all_models_answer_the_same_plain_ones(with_all):
    plain = Answers.read(with_all / "evaluation" / "base")
    found = Answers.read(with_all / "evaluation" / "rewards_in_context" / "seed-0" / LAMBDA)
    assert (found.prompt_ids, found.prompts) == (plain.prompt_ids, plain.prompts)
    scores = np.array([[each["longer"], each["polite"]] for each in training_scores(with_all)])
    low, high = np.quantile(scores, [0.01, 0.99], axis=0)
    target = np.array([0.25, 0.75]) / math.hypot(0.25, 0.75) * (high - low) + low
    near = (abs(scores - np.round(target, 1)) <= 0.5).all(axis=1).sum()
    shown = ", ".join(
        f"{value} {written_score(score)}"
        for value, score in zip(("longer", "polite"), target, strict=True)
    )
    page = (with_all / "report" / "index.html").read_text()
    assert f"λ = (0.25, 0.75): {shown}; {near} of {len(scores)} training answers" in page


def test_a_picked_policy_of_scores_in_prompts_comes_with_the_text_that_asks_for_them(with_all):
    arguments = ("--candidate", f"rewards_in_context/{LAMBDA}", "--out", "picked")
    said = vcsoup("pick", "run", *arguments, folder=with_all.parent)
    page = (with_all / "report" / "index.html").read_text()
    asked = re.search(r"λ = \(0.25, 0.75\): longer (\S+), polite (\S+);", page)
    assert asked is not None
    added = f"big {asked[1]} new {asked[2]}"
    assert f"prompt: add to the last user message, after an empty line: {added}\n" in said
    card = (with_all.parent / "picked" / "README.md").read_text()
    assert f"```text\n{added}\n```" in card
    model = AutoModelForCausalLM.from_pretrained(with_all.parent / "picked").state_dict()
    policy = with_all / "policies" / "rewards_in_context" / "union" / "seed-0"
    for name, tensor in AutoModelForCausalLM.from_pretrained(policy).state_dict().items():
        assert torch.equal(model[name], tensor), name


def training_scores(run: Path) -> list[dict[str, float]]:
    """Of both answers of every training pair of the union."""
    known = scores_of(run)
    found = []
    table = pq.read_table(run / "union" / "train.parquet")
    for name in ("longer", "polite"):
        (file,) = (run / "pairs" / name).glob("train-*.parquet")
        pairs = {each["id"]: each for each in pq.read_table(file).to_pylist()}
        for row in table.filter(table["once"]).to_pylist():
            if row["dataset"] == name:
                pair = pairs[row["id"]]
                prompt = pair["prompt"][0]["content"]
                found += [known[prompt, pair[side]] for side in ("chosen", "rejected")]
    return found


def kill_when(condition: Callable[[], bool], *arguments: str, folder: Path) -> None:
    """Start a command and kill it, with which its ranks die, as soon as the condition holds."""
    with open(folder / "killed.log", "ab") as log:
        files = [0, log.fileno(), log.fileno()]
        command = [VCSOUP, *arguments]
        child = server().start("run", command, folder=folder, environment=os.environ, files=files)
    try:
        wait_for(condition)
    finally:
        child.kill()
    assert child.returncode == -signal.SIGKILL


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = [each for each in folder.rglob("*") if each.is_file()]
    return {str(each.relative_to(folder)): each.read_bytes() for each in files}


@pytest.mark.kills
def test_a_policy_that_is_killed_in_mid_trade_off_ends_with_the_same_bytes(run):
    folder, name = run.parent, f"policies/modpo/{LAMBDA}/seed-0"
    write(folder, {"modpo": {}}, "long", steps=16, checkpoint_every=1)
    for copy in ("calm", "killed"):
        shutil.copytree(folder / "first", folder / copy)
    command = ("train", name, "long.yaml", "-d")
    vcsoup(*command, "calm", folder=folder)
    steps = folder / "killed/work" / name / "scratch"
    short_policy = bytes_of(folder / "killed" / name)

    def is_in_the_middle() -> bool:
        done = [
            int(each.parent.name.removeprefix("step-"))
            for each in steps.glob("step-????????/COMPLETE")
        ]
        return max(done, default=0) in range(3, 16)

    kill_when(is_in_the_middle, *command, "killed", folder=folder)
    assert bytes_of(folder / "killed" / name) == short_policy
    assert "resumed after step" in vcsoup(*command, "killed", folder=folder)
    found = bytes_of(folder / "killed" / name)
    assert found == bytes_of(folder / "calm" / name) != short_policy


@pytest.mark.kills
def test_a_kill_while_reference_log_probs_are_extended_costs_no_bytes_that_were_there(run):
    """Small batches, so that they are written many pairs after others."""
    folder, extended = run.parent, ("longer", "polite")
    start, killed, calm = (folder / name for name in ("start", "cut", "whole"))
    shutil.copytree(folder / "first", start)
    shutil.rmtree(start / "reference")
    write(folder, {"vc_soup": {}}, "few", tokens_per_batch=32)
    write(folder, {"vc_soup": {}, "rewarded_soup": {}}, "more", tokens_per_batch=32)
    for stage in ("filter", "reference"):
        vcsoup(stage, "few.yaml", "-d", "start", folder=folder)
    vcsoup("filter", "more.yaml", "-d", "start", folder=folder)
    for copy in (killed, calm):
        shutil.copytree(start, copy)
    there = reference_files(killed)

    def begun() -> list[PartManifest]:
        return [
            PartManifest.read(each.parent)
            for each in killed.glob("work/reference/*/output/part-*/manifest.json")
        ]

    command = ("reference", "more.yaml", "-d")
    kill_when(lambda: any(each.pairs for each in begun()), *command, "cut", folder=folder)
    assert reference_files(killed) == there
    folders = [each.parent for each in killed.glob("work/reference/*/output/part-*/rows.npy")]
    written = [(PartManifest.read(each).pairs, len(np.load(each / "rows.npy"))) for each in folders]
    assert any(pairs for pairs, _ in written) and any(pairs < of for pairs, of in written)
    for name in ("cut", "whole"):
        vcsoup(*command, name, folder=folder)
    assert reference_files(killed).items() > there.items()
    for dataset in extended:
        found = bytes_of(killed / "reference" / dataset)
        assert "part-00001/logps.npy" in found
        assert found == bytes_of(calm / "reference" / dataset)
