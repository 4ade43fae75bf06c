"""Pairs, reference and policies below one folder, as the stages would lay them, on real ranks."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conftest import sentence
from fork_server import Child, call_forked, server
from safetensors.torch import load_file

from vcsoup_dist.launch.ranks import run_ranks
from vcsoup_dist.recipe import Launch, Training
from vcsoup_dist.records.pairs import HELD_OUT, PairsFile, PairsManifest, pairs_schema, train_name
from vcsoup_dist.records.reference import begin_part, part_name
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.tokens.stage import encode_part, write_tokens
from vcsoup_dist.training.deepspeed_config import FOLDERS
from vcsoup_dist.training.job import Job, PolicyTask, ReferenceTask
from vcsoup_dist.training.selection import select_filtered

TESTS = str(Path(__file__).parent)
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


def processes_with(text: str) -> list[int]:
    """Processes with an argument `text`."""
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


def wait_for(condition, seconds: float = 240.0) -> None:
    """Until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def training_of(changes: Mapping[str, object]) -> Training:
    """SETTINGS with changes, of which `launch` is none."""
    return Training(**{k: v for k, v in (SETTINGS | changes).items() if k != "launch"})


def write_canonical(folder: Path, shards: list[list[dict]], heldout: list[dict]) -> None:
    """A finished `pairs/<dataset>`, of rows with `id`, `prompt`, `chosen` and `rejected`."""
    folder.mkdir(exist_ok=True)
    schema = pairs_schema([])
    files = [PairsFile(train_name(i), len(rows)) for i, rows in enumerate(shards)]
    for name, rows in (
        *zip([each.file for each in files], shards, strict=True),
        (HELD_OUT, heldout),
    ):
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name)
    train = sum(each.rows for each in files)
    PairsManifest(train + len(heldout), train, len(heldout), files).write(folder)


def encode_folder(pairs: Path, output: Path, model: Path, training: Training) -> None:
    """Write the token file of a folder of canonical pairs into the folder `output`."""
    parts = output / "parts"
    parts.mkdir()
    encode = functools.partial(map, functools.partial(encode_part, str(model), None, training))
    write_tokens(pairs, parts, output, encode)


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
        self.filtered.mkdir()
        write_canonical(self.pairs, [rows[:12], rows[12:24]], rows[24:])
        self.keep("pairs", rows[:24])
        self.keep("heldout", rows[24:])

    def keep(self, name: str, rows: list[dict]) -> None:
        """Write a file of filtered pairs, every third of which is swapped."""
        kept = [
            {
                "id": row["id"],
                "dataset": self.pairs.name,
                "swapped": i % 3 == 0,
                "consistency": (int(row["id"]) % 7) / 7,
            }
            for i, row in enumerate(rows)
        ]
        pq.write_table(pa.Table.from_pylist(kept), self.filtered / f"{name}.parquet")

    def tokens(self, model: Path, training: Training) -> Path:
        """Folder of the pairs in tokens."""
        folder = self.root / f"tokens-{model.name}-{training.max_length}-{training.overlong}"
        if not folder.exists():
            folder.mkdir()
            encode_folder(self.pairs, folder, model, training)
        return folder

    def reference_job(
        self,
        name: str = "reference",
        model: Path | None = None,
        rows: slice = slice(None),
        number: int = 0,
        **changes: object,
    ) -> Path:
        """Of all pairs or some, as a part in the folder `name`."""
        output = self.root / name
        output.mkdir(exist_ok=True)
        tokens = TokenFile(self.tokens(model or self.model, training_of(changes)))
        part = output / part_name(number)
        if not part.exists():
            begin_part(part, tokens, np.flatnonzero(tokens.usable())[rows])
        task = ReferenceTask(str(tokens.folder), str(part), str(self.lock))
        return self._write(f"{name}-{number}", model, changes, [task], None)

    def policy_job(
        self,
        name: str,
        reference: str | None = "reference",
        model: Path | None = None,
        **changes: object,
    ) -> Path:
        """On the filtered pairs, into the folder `name`; `launch` among the changes is a Launch."""
        folders = {key: self.root / name / key for key in ("output", "scratch", "logs")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        training = training_of(changes)
        tokens = TokenFile(self.tokens(model or self.model, training))
        train, heldout = (
            select_filtered(
                folders["scratch"] / f"{each}.npy",
                {self.pairs.name: tokens},
                [self.filtered / f"{each}.parquet"],
                limit,
                weighted=each == "pairs" and training.pair_weights == "consistency",
            )
            for each, limit in (("pairs", None), ("heldout", training.heldout_pairs))
        )
        task = PolicyTask(
            name=name,
            tokens=[str(tokens.folder)],
            references=[] if reference is None else [str(self.root / reference)],
            train=train,
            heldout=heldout,
            seed=3,
            unfiltered_pairs=24,
            workers_lock=str(self.lock),
            **{key: str(folder) for key, folder in folders.items()},
        )
        return self._write(name, model, changes, [], task)

    def _write(self, name, model, changes, references, policy) -> Path:
        launch = changes.pop("launch", Launch())
        training = training_of(changes)
        config = str(FOLDERS[0] / f"{training.deepspeed}.json")
        file = self.root / f"{name}.json"
        model = str(model or self.model)
        swap = training.nvme_path and f"{training.nvme_path}/{name}"
        Job(model, None, config, training, launch, references, policy, swap).write(file)
        return file

    def run(self, *jobs: Path, ranks: int = 2) -> None:
        """One job after another on the same ranks, which are forked."""
        if len(jobs) == 1:
            call_forked(run_ranks, RANK, jobs[0], ranks, 1, self.logs(jobs[0]))
            return
        listed = self.root / "jobs.json"
        listed.write_text(json.dumps([str(job) for job in jobs]))
        call_forked(run_ranks, "many_jobs", listed, ranks, 1, self.root / "logs")

    def logs(self, job: Path) -> Path:
        """Where the launcher keeps the logs of the job's ranks."""
        return self.root / "logs" / job.stem

    def start(self, job: Path, forked: bool) -> subprocess.Popen[str] | Child:
        """The launcher of a job on two ranks; it and they are forked, or real ones."""
        command = ["training_launcher", str(job), str(self.logs(job))]
        path = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path}
        with open(self.root / f"{job.stem}.log", "ab") as log:
            if not forked:
                python = [sys.executable, "-P", "-m"]
                return subprocess.Popen([*python, *command], env=environment, stderr=log, text=True)
            streams = [0, 1, log.fileno()]
            return server().start(
                "run", command, folder=self.root, environment=environment, files=streams
            )

    def checkpoints(self, name: str) -> list[Path]:
        """Complete ones of the policy `name`."""
        return sorted(each.parent for each in self.root.glob(f"{name}/scratch/step-*/COMPLETE"))

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.root / name / "output" / "model.safetensors")

    def metrics(self, name: str) -> list[dict]:
        lines = (self.root / name / "logs" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]
