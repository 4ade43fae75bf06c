"""Measure our scoring against plain transformers loops, in turn, on the same pairs.

    python tools/bench_score.py --model MODEL --data a.jsonl b.jsonl --pairs 200 --json score.json

Contestants, each in a process of its own, with the same model, texts, dtype and threads:

  ours      `scoring.rewards`: texts packed by token budget, a pair's common start computed once
  one       one text at a time, without padding
  fixed-B   B texts at a time in the data's order, padded to the longest (B = 8, 16, 32)

Everyone tokenises by the chat template inside the measured time; loading, and a warm-up of a few
texts, are outside. Pairs longer than the model's limit are left out, since who truncates differs.
Then `--actors 1,2` scores the same pairs on Ray, by so many actors of one thread each.

A Markdown summary goes to the standard output, every round to the JSON file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import git_state, hardware

from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.preferences.rows import read_pairs
from vcsoup_dist.recipe import ClassifierReward

FIXED = (8, 16, 32)
SHARD = 256  # pairs that are sorted by length together
ACTORS_SHARD = 16  # pairs; small, so that all actors end at about the same time
WARM = 4  # texts
PACKAGES = ("torch", "transformers", "ray", "numpy")

COLUMNS = """\
  pairs/s         median over rounds
  ours is         how many times as fast as that contestant, in the median
  tokens/s        tokens of all texts, chosen and rejected, counted alike for everyone
  computed        tokens that the model's forward gets, padding included, per token counted
  differs by      largest difference to the score of the same text alone
"""

Text = tuple[list[dict[str, str]], str]


def read(files: Sequence[Path], count: int) -> list[Pair]:
    """The first pairs of each file."""
    found = []
    for file in files:
        rows = read_pairs(Located(str(file), None, None))
        pairs = [row for _, row in rows if isinstance(row, Pair)]
        found += pairs[:count]
    return found


def texts_of(pairs: Sequence[Pair]) -> list[Text]:
    """Chosen and rejected in turn."""
    return [(pair.prompt, each) for pair in pairs for each in (pair.chosen, pair.rejected)]


def tokenise(tokenizer: Any, text: Text) -> list[int]:
    """Token ids by the chat template, as a plain script does it."""
    chat = [*text[0], {"role": "assistant", "content": text[1]}]
    ids: list[int] = tokenizer.apply_chat_template(chat, return_dict=False)
    return ids


def plain_loop(
    model: Any, tokenizer: Any, texts: Sequence[Text], batch: int, device: str
) -> tuple[list[float], int]:
    """Scores by transformers alone, `batch` padded texts at a time, and the tokens computed."""
    import torch

    scores: list[float] = []
    computed = 0
    with torch.inference_mode():
        for first in range(0, len(texts), batch):
            ids = [tokenise(tokenizer, text) for text in texts[first : first + batch]]
            inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)
            computed += inputs["input_ids"].numel()
            scores += model(**inputs).logits[:, 0].double().tolist()
    return scores, computed


def contestant(
    name: str, model: Path, dtype: str, device: str, tokens_per_batch: int | None
) -> tuple[Callable[[Sequence[Text]], tuple[list[float], int]], str]:
    """A loaded contestant: texts -> scores, and tokens computed; and how it runs."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if name == "ours":
        from vcsoup_dist.scoring.load_reward import load_reward

        reward = load_reward(
            [ClassifierReward(classifier=str(model), dtype=dtype)],
            Located(str(model), None, None),
            device=device,
            tokens_per_batch=tokens_per_batch,
        )
        rows: list[int] = []  # tokens of every call of the decoder
        decoder = reward.model.base_model
        decoder.register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(kwargs["input_ids"].numel()), with_kwargs=True
        )

        def ours(texts: Sequence[Text]) -> tuple[list[float], int]:
            rows.clear()
            scores: list[float] = []
            for first in range(0, len(texts), 2 * SHARD):
                scored = reward.score(reward.encode(texts[first : first + 2 * SHARD]))
                scores += scored.rewards[:, 0].tolist()
            return scores, sum(rows)

        return ours, reward.description.removeprefix(f"{model}: ")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.padding_side = "right"
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    loaded = AutoModelForSequenceClassification.from_pretrained(model, dtype=types[dtype])
    loaded.to(device).eval()
    batch = 1 if name == "one" else int(name.removeprefix("fixed-"))
    return lambda texts: plain_loop(loaded, tokenizer, texts, batch, device), "plain transformers"


def race(job: dict[str, Any]) -> None:
    """One round of one contestant; prints its result as JSON."""
    import torch

    torch.set_num_threads(job["threads"])
    texts = [tuple(text) for text in json.loads(Path(job["texts"]).read_text())]
    run, described = contestant(
        job["name"], Path(job["model"]), job["dtype"], job["device"], job["tokens_per_batch"]
    )
    run(texts[:WARM])
    started = time.perf_counter()
    scores, computed = run(texts)
    if job["device"] == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    memory = torch.cuda.max_memory_allocated() if job["device"] == "cuda" else 0
    print(json.dumps([seconds, computed, memory, scores, described]))


def run_round(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run `race` in a process of its own."""
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--race", str(file)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{job['name']}: {done.stderr[-2000:]}")
    seconds, computed, memory, scores, described = json.loads(done.stdout.splitlines()[-1])
    return {
        "seconds": seconds, "computed": computed, "memory": memory, "scores": scores,
        "described": described,
    }  # fmt: skip


def actor_rate(pairs: Sequence[Pair], model: Path, dtype: str, actors: int, folder: Path) -> float:
    """Pairs per second of `actors` Ray actors, from a fifth of the pairs done to all of them."""
    from vcsoup_dist.launch.placement import WorkerResources
    from vcsoup_dist.launch.pools import run_pools
    from vcsoup_dist.launch.ray_cluster import ray_cluster
    from vcsoup_dist.recipe import Launch
    from vcsoup_dist.records.pairs import AppendedTable, PairSlice, pair_row, pairs_schema
    from vcsoup_dist.scoring.tasks import Output, ShardTask
    from vcsoup_dist.scoring.workload import ScoringWorkload

    file, lock = folder / "pairs.parquet", folder / "lock"
    lock.touch()
    with AppendedTable(file, pairs_schema([])) as table:
        for pair in pairs:
            table.add(pair_row(pair))
    tasks = []
    for i in range(0, len(pairs), ACTORS_SHARD):
        part = PairSlice(file, i, min(ACTORS_SHARD, len(pairs) - i))
        output = Output("scores", 0, folder / f"scores-{actors}-{i}.parquet", lock)
        tasks.append(ShardTask(part, (output,)))
    workload = ScoringWorkload(
        name="reward", section="scoring", tasks=tasks, workers=actors, resources=WorkerResources(),
        rewards=[ClassifierReward(classifier=str(model), dtype=dtype)],
        source=Located(str(model), None, None), tokens_per_batch=None, most_unscored={"scores": 0},
        resumed=False, quarantine=folder / "quarantine.json",
    )  # fmt: skip
    times: list[tuple[float, float]] = [(0.0, 0.0)]
    with ray_cluster(Launch(threads=1), folder):
        list(run_pools([workload], lambda n: times.append((time.perf_counter(), times[-1][1] + n))))
    warm = next(each for each in times if each[1] >= len(pairs) / 5)
    return (times[-1][1] - warm[1]) / (times[-1][0] - warm[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a sequence classifier with a chat template")
    parser.add_argument("--data", type=Path, nargs="+", help="preference pairs")
    parser.add_argument("--pairs", type=int, default=200, help="of each file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens-per-batch", type=int, help="ours; the device's usual by default")
    parser.add_argument("--actors", default="", metavar="N,N", help="numbers of actors to try")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--race", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.race:
        race(json.loads(asked.race.read_text()))
        return
    if not asked.model or not asked.data:
        parser.error("--model and --data are needed")
    with tempfile.TemporaryDirectory() as folder:
        result = compare(asked, Path(folder))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def compare(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds of all contestants, and what they were asked."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    limit = AutoConfig.from_pretrained(asked.model).max_position_embeddings
    every = read(asked.data, asked.pairs)
    lengths = [[len(tokenise(tokenizer, text)) for text in texts_of([pair])] for pair in every]
    pairs = [pair for pair, both in zip(every, lengths, strict=True) if max(both) <= limit]
    tokens = sum(sum(both) for both in lengths if max(both) <= limit)
    (folder / "texts.json").write_text(json.dumps(texts_of(pairs)))
    names = ["ours", "one", *(f"fixed-{batch}" for batch in FIXED)]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(asked.rounds):
        for name in names:
            job = {
                "name": name, "model": str(asked.model.resolve()), "dtype": asked.dtype,
                "device": asked.device, "threads": asked.threads,
                "tokens_per_batch": asked.tokens_per_batch, "texts": str(folder / "texts.json"),
            }  # fmt: skip
            rounds[name].append(run_round(job, folder))
    alone = rounds["one"][0]["scores"]
    for each in (each for every in rounds.values() for each in every):
        scores = each.pop("scores")
        each["differs_by"] = max(abs(a - b) for a, b in zip(scores, alone, strict=True))
    actors: dict[str, list[float]] = {n: [] for n in asked.actors.split(",") if n}
    for _ in range(asked.rounds):
        for count, rates in actors.items():
            part = folder / f"actors-{count}-{len(rates)}"
            part.mkdir()
            rates.append(actor_rate(pairs, asked.model.resolve(), asked.dtype, int(count), part))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": git_state(),
        "hardware": hardware(folder),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": {
            key: value for key, value in vars(asked).items()
            if key in ("rounds", "threads", "dtype", "device", "tokens_per_batch")
        },
        "data": [file.name for file in asked.data],
        "pairs": len(pairs), "left_out": len(every) - len(pairs), "tokens": tokens,
        "rounds": rounds, "actors": actors,
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """A Markdown summary."""
    pairs, tokens, rounds = result["pairs"], result["tokens"], result["rounds"]
    seconds = {
        name: statistics.median(each["seconds"] for each in every) for name, every in rounds.items()
    }
    print(f"{pairs} pairs of {tokens / pairs:.0f} tokens; {result['left_out']} longer left out\n")
    print("| contestant | pairs/s | ours is | tokens/s | computed | differs by | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for name, every in rounds.items():
        print(
            f"| {name} | {pairs / seconds[name]:.2f} | {seconds[name] / seconds['ours']:.2f} x "
            f"| {tokens / seconds[name]:,.0f} | {every[0]['computed'] / tokens:.2f} "
            f"| {max(each['differs_by'] for each in every):.1e} "
            f"| {', '.join(format(each['seconds'], '.1f') for each in every)} |"
        )
    print(f"\n{COLUMNS}")
    print(f"ours: {rounds['ours'][0]['described']}\n")
    if result["actors"]:
        rates = {count: statistics.median(each) for count, each in result["actors"].items()}
        first = next(iter(rates.values()))
        print("| actors | pairs/s | of the first | rounds |")
        print("| ---: | ---: | ---: | --- |")
        for count, rate in rates.items():
            every = ", ".join(f"{each:.2f}" for each in result["actors"][count])
            print(f"| {count} | {rate:.2f} | {rate / first:.2f} x | {every} |")


if __name__ == "__main__":
    main()
