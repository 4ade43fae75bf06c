"""Seconds to the first step, and memory of a rank, against the number of pairs.

    python tools/bench_tokens.py --pairs 10000,100000,1000000 --report tokens

Makes that many pairs of short texts, and a tiny model whose head is zero: every token's log-prob is
-ln(vocabulary), so that reference log-probs of any number of pairs are known without a forward.
Then it does what `vcsoup filter` and `vcsoup train` do: writes the token file (on Ray where the
stage would), selects the pairs and starts two ranks, which take two DPO steps. The ranks are
started twice: with files out of the page cache, and again. Prints JSON; `--report` writes it into
docs/benchmarks too.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import resource
import shutil
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_memory import WORDS, make_model
from measuring import evict, git_state, hardware

from vcsoup_dist.launch.ranks import run_ranks
from vcsoup_dist.launch.task_map import runner
from vcsoup_dist.recipe import Launch, Training
from vcsoup_dist.records.pairs import HELD_OUT, PairsFile, PairsManifest, pairs_schema, train_name
from vcsoup_dist.records.reference import PartDraft, begin_part, part_name
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.tokens.stage import ON_CLUSTER, encode_part, write_tokens
from vcsoup_dist.training.deepspeed_config import FOLDERS
from vcsoup_dist.training.job import Job, PolicyTask
from vcsoup_dist.training.selection import select_all, select_filtered

RANK = "vcsoup_dist.training.rank"
REPORTS = Path(__file__).parents[1] / "docs" / "benchmarks"
IN_A_FILE = 16_384
PROMPT, ANSWER = 20, 60
"""Words, each a token."""
TRAINING = Training(
    dtype="fp32",
    steps=2,
    pairs_per_step=64,
    tokens_per_batch=4096,
    max_length=512,
    attention="auto",
    gradient_checkpointing=False,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", default="10000,100000,1000000", help="numbers of pairs")
    parser.add_argument("--folder", type=Path, help="where to put the temporary files")
    parser.add_argument("--report", help="name of a file in docs/benchmarks")
    options = parser.parse_args()
    runs = []
    for count in map(int, options.pairs.split(",")):
        with tempfile.TemporaryDirectory(prefix="bench-tokens-", dir=options.folder) as root:
            runs.append(bench(Path(root), count))
        print(json.dumps(runs[-1]), file=sys.stderr)
    found = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": sys.argv,
        "git": git_state(),
        "hardware": hardware(options.folder or Path(tempfile.gettempdir())),
        "runs": runs,
    }
    print(json.dumps(found, indent=1))
    if options.report:
        (REPORTS / f"{options.report}.json").write_text(json.dumps(found, indent=1) + "\n")


def bench(root: Path, count: int) -> dict[str, Any]:
    """Everything for so many pairs."""
    model = root / "model"
    make_model(model, "nothing")
    vocabulary = zero_head(model)
    filtered = make_pairs(root / "pairs", count)

    began = time.monotonic()
    tokens = write(root, model)
    encoding = time.monotonic() - began
    part = root / "reference" / part_name(0)
    part.parent.mkdir()
    rows = np.flatnonzero(tokens.usable())
    begin_part(part, tokens, rows)
    known = np.full(tokens.manifest.answer_tokens, -math.log(vocabulary), np.float32)
    PartDraft(part).write(0, known, len(rows))
    del known

    launches = []
    for number in range(2):
        if number == 0:
            evict([root], warm=False)
        began = time.monotonic()
        train = select_filtered(root / "train.npy", {"pairs": tokens}, [filtered])
        heldout = select_all(root / "heldout.npy", [tokens], 0)
        selecting = time.monotonic() - began
        folders = {key: root / f"{key}-{number}" for key in ("output", "scratch", "logs")}
        for folder in folders.values():
            folder.mkdir()
        task = PolicyTask(
            name="policy",
            tokens=[str(tokens.folder)],
            references=[str(root / "reference")],
            train=train,
            heldout=heldout,
            seed=0,
            unfiltered_pairs=count,
            workers_lock=str(root / "lock"),
            **{key: str(folder) for key, folder in folders.items()},
        )
        (root / "lock").touch()
        config = str(FOLDERS[0] / f"{TRAINING.deepspeed}.json")
        job = root / f"job-{number}.json"
        Job(str(model), None, config, TRAINING, Launch(ranks=2), [], task).write(job)
        metrics = folders["logs"] / "metrics.jsonl"
        first = FirstStep(metrics)
        first.start()
        run_ranks(RANK, job, 2, 1, root / "ranks")
        first.join()
        steps = [json.loads(line) for line in metrics.read_text().splitlines()]
        launches.append(
            {
                "selecting_s": round(selecting, 2),
                "first_step_s": round(first.seconds - began, 2),
                "rank_peak_gib": round(max(each["peak_memory_gib"] for each in steps), 3),
            }
        )
    return {
        "pairs": count,
        "tokens": tokens.manifest.answer_tokens,
        "file_bytes": sum(file.stat().st_size for file in tokens.folder.glob("*.arrow")),
        "encoding_s": round(encoding, 1),
        "first": launches[0],
        "again": launches[1],
        "launcher_peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }


class FirstStep(threading.Thread):
    """Notes when the first step is in the log."""

    def __init__(self, metrics: Path) -> None:
        super().__init__(daemon=True)
        self.metrics, self.seconds = metrics, math.nan

    def run(self) -> None:
        while not (self.metrics.exists() and self.metrics.stat().st_size):
            time.sleep(0.02)
        self.seconds = time.monotonic()


def zero_head(model: Path) -> int:
    """Let every token have the log-prob -ln(vocabulary); returns the vocabulary."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.get_output_embeddings().weight.data.zero_()
    loaded.save_pretrained(model)
    return int(loaded.config.vocab_size)


def make_pairs(folder: Path, count: int) -> Path:
    """A finished `pairs/<dataset>`; returns a filtered file that keeps all of it."""
    folder.mkdir()
    draw = random.Random(0)
    shards = []

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    ids = [f"{i:016x}" for i in range(count)]
    for first in range(0, count, IN_A_FILE):
        rows = [
            {
                "id": id_,
                "prompt_id": id_,
                "answers_id": id_,
                "prompt": [{"role": "user", "content": text(PROMPT)}],
                "chosen": text(ANSWER),
                "rejected": text(ANSWER),
            }
            for id_ in ids[first : first + IN_A_FILE]
        ]
        shards.append(PairsFile(train_name(len(shards)), len(rows)))
        table = pa.Table.from_pylist(rows, schema=pairs_schema(()))
        pq.write_table(table, folder / shards[-1].file, row_group_size=1024)
    pq.write_table(pairs_schema(()).empty_table(), folder / HELD_OUT)
    PairsManifest(count, count, 0, shards).write(folder)
    columns = {"id": ids, "dataset": ["pairs"] * count, "swapped": [False] * count}
    filtered = folder.with_name("filtered.parquet")
    pq.write_table(pa.table(columns), filtered)
    return filtered


def write(root: Path, model: Path) -> TokenFile:
    """The token file, as the stage `tokens` writes it."""
    for name in ("parts", "tokens"):
        (root / name).mkdir()
    size = sum(file.stat().st_size for file in (root / "pairs").glob("*.parquet"))
    (root / "workers").touch()
    with runner(Launch(), root, size >= ON_CLUSTER) as run:
        encode = functools.partial(
            run,
            functools.partial(encode_part, str(model), None, TRAINING),
            workers_lock=root / "workers",
        )
        write_tokens(root / "pairs", root / "parts", root / "tokens", encode)
    shutil.rmtree(root / "parts")
    return TokenFile(root / "tokens")


if __name__ == "__main__":
    main()
