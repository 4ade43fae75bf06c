"""theta_0 made by SFT, by the commands that a user types, on two real ranks."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from command import start_vcsoup, vcsoup
from conftest import save_tiny_model, sentence
from training_world import wait_for
from transformers import AutoModelForCausalLM, AutoTokenizer

from vcsoup_dist.forward.template import encode_pair
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.reference import Reference
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.training.sft import sft_training

pytestmark = [pytest.mark.models, pytest.mark.processes, pytest.mark.ranks]

RECIPE = """
name: warmed
model: base
values:
  long:
    data: {path: long.jsonl, heldout_share: 0.2}
    reward: {columns: [of_chosen, of_rejected]}
    judge: {callable: "rewards.py:longer"}
  short:
    data: {path: short.jsonl, heldout_share: 0.2}
    reward: {columns: [of_chosen, of_rejected]}
    judge: {callable: "rewards.py:longer"}
sft: {learning_rate: 1.0e-3, pairs_per_step: 8, steps: 24}
training:
  {dtype: fp32, learning_rate: 1.0e-3, pairs_per_step: 8, steps: 3, max_length: 64,
   checkpoint_every: 2, evaluate_every: 3, gradient_checkpointing: false}
soup: {grid: 0.5}
launch: {ranks: 2}
"""
PAIRS = 24


def write_scored_pairs(path: Path, seed: int) -> None:
    draw = random.Random(seed)
    rows = [
        {
            "prompt": f"{sentence(draw)} {sentence(draw)} {sentence(draw)}",
            "chosen": sentence(draw) + " yes",
            "rejected": sentence(draw) + " no",
            "of_chosen": draw.random() + 1,
            "of_rejected": draw.random(),
        }
        for _ in range(PAIRS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("warmed")
    save_tiny_model(folder / "base")
    write_scored_pairs(folder / "long.jsonl", 1)
    write_scored_pairs(folder / "short.jsonl", 2)
    (folder / "rewards.py").write_text("def longer(prompt, response):\n    return len(response)\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@dataclass(frozen=True)
class Trained:
    """A run directory with theta_0 and the policy of `long`."""

    root: Path
    said: list[str]
    """By two commands that made theta_0 at the same time."""


@pytest.fixture(scope="module")
def trained(folder) -> Trained:
    vcsoup("score", "recipe.yaml", folder=folder)
    vcsoup("filter", "recipe.yaml", folder=folder)
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(vcsoup, "sft", "recipe.yaml", folder=folder) for _ in range(2)]
        said = [each.result() for each in both]
    vcsoup("train", "long", "recipe.yaml", folder=folder)
    return Trained(folder / "runs" / "warmed", said)


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_sft_has_its_own_keys_and_those_of_training():
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": "m",
            "values": {"v": {"reward": {"callable": "r.py:f"}, "data": {"path": "d.jsonl"}}},
            "sft": {"learning_rate": 3e-6, "epochs": 2},
            "training": {
                "objective": "ipo",
                "sft_weight": 0.5,
                "pair_weights": "consistency",
                "steps": 9,
                "max_length": 77,
                "adam_betas": [0.8, 0.9],
            },
        }
    )
    training = sft_training(recipe)
    assert (training.objective, training.sft_weight, training.pair_weights) == ("sft", 0, "equal")
    assert (training.learning_rate, training.epochs, training.steps) == (3e-6, 2, None)
    assert training.pairs_per_step == recipe.sft.pairs_per_step
    assert (training.max_length, training.adam_betas) == (77, (0.8, 0.9))


def test_theta_0_is_a_model_that_has_learnt_from_the_chosen_answers_of_all_datasets(
    folder, trained
):
    theta_0, info = AutoModelForCausalLM.from_pretrained(
        trained.root / "theta_0", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(trained.root / "theta_0").chat_template
    base = state(folder / "base")
    assert all(not torch.equal(base[name], one) for name, one in theta_0.state_dict().items())
    losses = [each["loss"] for each in records(trained.root / "logs" / "theta_0" / "metrics.jsonl")]
    assert len(losses) == 24 and losses[-1] < losses[0]
    read = [
        json.loads((trained.root / "pairs" / dataset / "manifest.json").read_text())
        for dataset in ("long", "short")
    ]
    summary = TrainingSummary.read(trained.root / "theta_0")
    assert summary.pairs == sum(each["train"] for each in read)


def test_the_reference_is_of_theta_0(trained):
    model = AutoModelForCausalLM.from_pretrained(trained.root / "theta_0").eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.root / "theta_0")
    pairs = pq.read_table(trained.root / "pairs" / "long" / "train-00000.parquet").to_pylist()
    tokens = TokenFile(trained.root / "tokens" / "long")
    cached = Reference(trained.root / "reference" / "long", tokens)
    read = cached.rows().tolist()
    assert read[-1] >= tokens.manifest.train  # of those held out, too
    for i, pair in ((i, pair) for i, pair in enumerate(pairs) if i in read):
        chosen, _ = encode_pair(
            tokenizer, pair["prompt"], pair["chosen"], pair["rejected"], 64, True
        )
        ids = torch.tensor([list(chosen.ids)])
        with torch.no_grad():
            logps = model(ids, use_cache=False).logits[0].double().log_softmax(-1)
        plain = [float(logps[i - 1, ids[0, i]]) for i in range(chosen.start, ids.shape[1])]
        assert cached.logps(i)[: len(plain)] == pytest.approx(plain, abs=1e-5)


def test_a_policy_starts_from_theta_0(trained):
    metrics = records(trained.root / "logs" / "policies/vc_soup/long/seed-0" / "metrics.jsonl")
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    theta_0 = state(trained.root / "theta_0")
    policy = state(trained.root / "policies/vc_soup/long/seed-0")
    base = state(trained.root.parents[1] / "base")
    for name in policy:
        moved = (policy[name] - theta_0[name]).norm()
        assert 0 < moved < (policy[name] - base[name]).norm(), name


def test_references_are_a_command_of_their_own_that_makes_those_of_all_datasets(folder, trained):
    assert not (trained.root / "reference" / "short").exists()
    vcsoup("reference", "recipe.yaml", folder=folder)
    assert (trained.root / "reference" / "short" / "product.json").exists()
    assert "nothing to do" in vcsoup("reference", "recipe.yaml", folder=folder)
    assert "nothing to do" in vcsoup("sft", "recipe.yaml", folder=folder)


def test_two_commands_at_once_share_one_theta_0(trained):
    waited, made = sorted(trained.said, key=len)
    assert "waiting: theta_0 is being made by another process" in waited
    assert "starting 2 ranks" in made and "starting 2 ranks" not in waited


def test_no_checkpoint_of_a_finished_theta_0_is_left(trained):
    assert not list(trained.root.glob("work/theta_0/**/step-*"))


def test_sft_that_was_stopped_resumes_to_the_same_bytes(folder, trained):
    root = folder / "stopped"
    vcsoup("score", "recipe.yaml", "-d", "stopped", folder=folder)
    process = start_vcsoup(
        "sft", "recipe.yaml", "-d", "stopped", folder=folder, stderr=subprocess.PIPE
    )
    saved = "work/theta_0/scratch/step-????????/COMPLETE"
    wait_for(lambda: process.poll() is not None or list(root.glob(saved)))
    process.send_signal(signal.SIGUSR2)
    said = process.communicate()[1]
    assert process.returncode == 75, said
    assert said.splitlines()[-1].startswith("vcsoup: stopped on request")
    assert "Traceback" not in said
    assert not (root / "theta_0").exists()
    assert "resumed after step" in vcsoup("sft", "recipe.yaml", "-d", "stopped", folder=folder)
    ours, theirs = (each / "theta_0" / "model.safetensors" for each in (root, trained.root))
    assert ours.read_bytes() == theirs.read_bytes()
