"""Reference and policies on real DeepSpeed ZeRO-3 ranks (gloo, CPU)."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import save_tiny_model, sentence
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.template import encode_pair
from vcsoup_dist.launch.ranks import run_ranks
from vcsoup_dist.recipe import Launch, Training
from vcsoup_dist.training.deepspeed_config import FOLDERS
from vcsoup_dist.training.jobs import Job, PolicyTask, ReferenceTask

RANK = "vcsoup_dist.training.rank"
SETTINGS = {
    "dtype": "fp32",
    "learning_rate": 1e-3,
    "pairs_per_step": 8,
    "steps": 6,
    "tokens_per_batch": 96,
    "max_length": 64,
    "checkpoint_every": 2,
    "evaluate_every": 3,
    "gradient_checkpointing": False,
}


class World:
    """Pairs, reference and policies below one folder, as the stages would lay them."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model = root, model
        self.lock = root / "lock"
        self.lock.touch()
        draw = random.Random(0)
        rows = [
            {
                "id": f"{i:04d}",
                "prompt": [{"role": "user", "content": sentence(draw, 20)}],
                "chosen": sentence(draw),
                "rejected": sentence(draw) + " no",
            }
            for i in range(30)
        ]
        self.rows = rows
        self.pairs, self.filtered = root / "pairs", root / "filtered"
        self.pairs.mkdir()
        self.filtered.mkdir()
        pq.write_table(pa.Table.from_pylist(rows[:12]), self.pairs / "train-00000.parquet")
        pq.write_table(pa.Table.from_pylist(rows[12:24]), self.pairs / "train-00001.parquet")
        pq.write_table(pa.Table.from_pylist(rows[24:]), self.pairs / "heldout.parquet")
        for name, part in (("pairs", rows[:24]), ("heldout", rows[24:])):
            turned = [
                self._turned(row) if i % 3 == 0 else self._kept(row) for i, row in enumerate(part)
            ]
            pq.write_table(pa.Table.from_pylist(turned), self.filtered / f"{name}.parquet")

    @staticmethod
    def _kept(row: dict) -> dict:
        sides = {k: [{"role": "assistant", "content": row[k]}] for k in ("chosen", "rejected")}
        return row | sides | {"turned": False}

    @classmethod
    def _turned(cls, row: dict) -> dict:
        kept = cls._kept(row)
        return kept | {"chosen": kept["rejected"], "rejected": kept["chosen"], "turned": True}

    def reference_job(self, ranks: int, name: str = "reference", **changes: object) -> Path:
        output = self.root / name
        output.mkdir(exist_ok=True)
        task = ReferenceTask(str(self.pairs), str(output), str(self.lock))
        return self._write(name, Training(**(SETTINGS | changes)), [task], None)

    def policy_job(self, name: str, reference: bool = True, **changes: object) -> Path:
        folders = {key: self.root / name / key for key in ("output", "scratch", "logs")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        task = PolicyTask(
            name=name,
            pairs=[str(self.filtered / "pairs.parquet")],
            heldout=[str(self.filtered / "heldout.parquet")],
            references=[str(self.root / "reference")] if reference else [],
            seed=3,
            unfiltered_pairs=24,
            workers_lock=str(self.lock),
            **{key: str(folder) for key, folder in folders.items()},
        )
        return self._write(name, Training(**(SETTINGS | changes)), [], task)

    def _write(self, name, training, references, policy) -> Path:
        config = str(FOLDERS[0] / f"{training.deepspeed}.json")
        file = self.root / f"{name}.json"
        Job(str(self.model), None, config, training, Launch(), references, policy).write(file)
        return file

    def run(self, job: Path, ranks: int = 2) -> None:
        run_ranks(RANK, job, ranks, 1, self.root / "logs" / job.stem)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.root / name / "output" / "model.safetensors")

    def metrics(self, name: str) -> list[dict]:
        lines = (self.root / name / "logs" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model) -> World:
    world = World(tmp_path_factory.mktemp("world"), tiny_model)
    world.run(world.reference_job(2))
    world.run(world.policy_job("policy"))
    return world


def plain_logps(model, ids: list[int], start: int) -> torch.Tensor:
    with torch.no_grad():
        logps = model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return torch.stack([logps[i - 1, ids[i]] for i in range(start, len(ids))])


def test_reference_equals_a_plain_forward_of_every_pair(world):
    model = AutoModelForCausalLM.from_pretrained(world.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(world.model)
    files = sorted((world.root / "reference").glob("*.parquet"))
    assert [file.name for file in files] == [
        "heldout.parquet",
        "train-00000.parquet",
        "train-00001.parquet",
    ]
    cached = {row["id"]: row for file in files for row in pq.read_table(file).to_pylist()}
    assert set(cached) == {row["id"] for row in world.rows}
    for row in world.rows:
        pair = encode_pair(tokenizer, row["prompt"], row["chosen"], row["rejected"], 64, True)
        for side, encoded in zip(("chosen", "rejected"), pair, strict=True):
            expected = plain_logps(model, encoded.ids, encoded.start)
            assert np.allclose(cached[row["id"]][side], expected, atol=5e-6)


def test_training_starts_at_ln_2_and_learns(world):
    metrics = world.metrics("policy")
    assert [each["step"] for each in metrics] == list(range(6))
    assert metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.02
    assert metrics[-1]["heldout_loss"] > 0


def test_a_policy_loads_in_transformers_and_differs_from_the_base(world):
    model, info = AutoModelForCausalLM.from_pretrained(
        world.root / "policy" / "output", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    base = AutoModelForCausalLM.from_pretrained(world.model).state_dict()
    moved = [not torch.equal(base[name], tensor) for name, tensor in model.state_dict().items()]
    assert all(moved)
    tokenizer = AutoTokenizer.from_pretrained(world.root / "policy" / "output")
    assert tokenizer.chat_template


def test_another_world_size_takes_the_same_curve(world):
    world.run(world.policy_job("alone"), ranks=1)
    two, one = world.metrics("policy"), world.metrics("alone")
    for name in ("loss", "margin", "grad_norm"):
        ours, theirs = [each[name] for each in two], [each[name] for each in one]
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), name


def test_killed_in_mid_training_it_resumes_to_the_same_bytes_and_no_rank_survives(world, capfd):
    job = world.policy_job("killed", steps=40)
    undisturbed = world.policy_job("undisturbed", steps=40)
    world.run(undisturbed)
    code = (
        "import sys; from pathlib import Path; from vcsoup_dist.launch.ranks import run_ranks;"
        f"run_ranks({RANK!r}, Path({str(job)!r}), 2, 1, Path({str(world.root / 'killed-logs')!r}))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    scratch = world.root / "killed" / "scratch"
    deadline = time.monotonic() + 120
    while not list(scratch.glob("step-????????/COMPLETE")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert list(scratch.glob("step-????????/COMPLETE"))
    assert not (world.root / "killed" / "output" / "training.json").exists()
    deadline = time.monotonic() + 10
    while _processes_with(str(job)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _processes_with(str(job))

    capfd.readouterr()
    world.run(job)

    resumed = re.search(r"resumed after step (\d+)", capfd.readouterr().err)
    assert resumed and 0 < int(resumed.group(1)) < 40
    for name, tensor in world.weights("undisturbed").items():
        assert torch.equal(world.weights("killed")[name], tensor), name
    losses = [[each["loss"] for each in world.metrics(name)] for name in ("undisturbed", "killed")]
    assert losses[0] == losses[1]


def _processes_with(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if text.encode() in command:
                found.append(int(entry.name))
    return found


def test_a_reference_of_another_model_is_refused_before_the_first_step(world, tmp_path):
    save_tiny_model(tmp_path / "other", seed=1)
    other = World(tmp_path, tmp_path / "other")
    other.run(other.reference_job(1), ranks=1)
    other.model = world.model
    with pytest.raises(UserError, match="the policy is not its reference at the start"):
        other.run(other.policy_job("policy"), ranks=1)


FLAVOURS = {
    "optimizer in host memory": {"deepspeed": "zero3_offload"},
    "bf16, gradient checkpointing": {"dtype": "bf16", "gradient_checkpointing": True},
    "sft": {"objective": "sft"},
}


@pytest.mark.parametrize("changes", FLAVOURS.values(), ids=FLAVOURS.keys())
def test_flavours_train_a_tied_model_and_export_it(tmp_path, changes):
    save_tiny_model(tmp_path / "model", tied=True)
    world = World(tmp_path, tmp_path / "model")
    dpo = changes.get("objective", "dpo") == "dpo"
    if dpo:
        world.run(world.reference_job(2, **changes))
    world.run(world.policy_job("policy", reference=dpo, **changes))
    losses = [each["loss"] for each in world.metrics("policy")]
    assert losses[-1] < losses[0]
    weights = world.weights("policy")
    assert "lm_head.weight" not in weights
    expected = torch.bfloat16 if changes.get("dtype") == "bf16" else torch.float32
    assert {tensor.dtype for tensor in weights.values()} == {expected}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy" / "output")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
