"""What each stage takes on three hosts and on one: seconds, and bytes over the network.

    python tools/bench_hosts.py --report hosts      # as root; some minutes
    python tools/bench_hosts.py --until train --deepspeed zero2

Starts the hosts of tools/hosts.sh, writes a random Llama, two values and a recipe into the folder
that they share, and makes all stages in two run directories: by one host, and by three (scoring and
evaluation on Ray, training as a Slurm job on all hosts, a merge by three ranks). No stage
finds a file in a page cache. The hosts share the cores of this machine, so that seconds say what
distribution costs, and not what it brings. Prints JSON; `--report` writes it into docs/benchmarks
too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench_memory import make_model
from bench_reference import write_pairs
from measuring import git_state, hardware

HERE = Path(__file__).parents[1]
SCRIPT = HERE / "tools" / "hosts.sh"
REPORTS = HERE / "docs" / "benchmarks"
HOSTS = ("h1", "h2", "h3")
VALUES: list[tuple[str, ...]] = [("one",), ("two",)]
RECIPE = """
name: bench-hosts
model: base
values:
  one:
    data: {path: one.jsonl, heldout_share: 0.25}
    reward: {classifier: reward, max_length: 512}
  two:
    data: {path: two.jsonl, heldout_share: 0.25}
    reward: {columns: ["two+", "two-"]}
    judge: {callable: "operator:eq"}
scoring: {actors: 3, cpus_per_actor: 1, placement: spread, shard_pairs: 16}
training:
  {dtype: fp32, pairs_per_step: 6, steps: 4, max_length: 512, tokens_per_batch: 1024,
   checkpoint_every: 4, evaluate_every: 4, heldout_pairs: 6, gradient_checkpointing: false,
   deepspeed: DEEPSPEED}
soup: {grid: 0.25}
evaluation:
  {actors: 3, cpus_per_actor: 1, prompts: 4, max_prompt_tokens: 128, max_new_tokens: 4, dtype: fp32,
   bootstrap: 100}
launch: {ranks: RANKS}
"""
STAGES = ("score", "filter", "reference", "train", "merge", "evaluate", "report")


@dataclass
class Took:
    """A stage by some hosts."""

    seconds: float
    read_mb: float
    """From the file server, by all hosts together."""
    written_mb: float
    """To the file server."""
    between_mb: float
    """From host to host."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", default="30M", help="of the model, as in bench_memory.py")
    parser.add_argument("--pairs", type=int, default=64, help="of each value")
    parser.add_argument("--deepspeed", default="zero3", help="a configuration of ds_configs/")
    parser.add_argument("--ranks", type=int, default=1, help="of each host, in training")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage")
    parser.add_argument("--report", help="name of a file in docs/benchmarks")
    options = parser.parse_args()
    stages = STAGES[: STAGES.index(options.until) + 1]
    recipe = RECIPE.replace("DEEPSPEED", options.deepspeed)
    recipe = recipe.replace("RANKS", str(options.ranks * len(HOSTS)))
    hosts("up", len(HOSTS))
    try:
        found = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "command": sys.argv,
            "git": git_state(),
            "hardware": hardware(HERE),
            "model_mb": write_world(options.shape, options.pairs, recipe),
            "one host": measure_stages(stages, by_one),
            "three hosts": measure_stages(stages, by_three(options.ranks)),
            "same bytes": sums("one") == sums("three"),
        }
    finally:
        hosts("down")
    print(json.dumps(found, indent=1))
    if options.report:
        (REPORTS / f"{options.report}.json").write_text(json.dumps(found, indent=1) + "\n")


def hosts(*words: object) -> str:
    """What a command of tools/hosts.sh printed; SystemExit where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    command = [str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def vcsoup(host: str, stage: str, run: str, *more: object) -> None:
    for value in VALUES if stage == "train" else [()]:
        hosts("exec", host, "vcsoup", stage, *value, "recipe.yaml", "--run-dir", run, *more)


def write_world(shape: str, pairs: int, recipe: str) -> float:
    """Model, reward, data and recipe in the shared folder; the model's megabytes."""
    program = f"""
import sys; sys.path.insert(0, "vcsoup/tools")
from pathlib import Path
import bench_hosts
bench_hosts.write_files(Path("."), {shape!r}, {pairs}, {recipe!r})
"""
    hosts("exec", "h1", "python", "-c", program)
    return round(float(hosts("exec", "h1", "stat", "-c", "%s", "base/model.safetensors")) / 1e6, 1)


def write_files(folder: Path, shape: str, pairs: int, recipe: str) -> None:
    """What `write_world` has a host write."""
    from transformers import AutoModelForSequenceClassification

    make_model(folder / "base", shape)
    make_model(folder / "reward", shape)
    AutoModelForSequenceClassification.from_pretrained(
        folder / "reward", num_labels=1
    ).save_pretrained(folder / "reward")
    write_pairs(folder, pairs)
    (folder / "recipe.yaml").write_text(recipe)


def measure_stages(stages: Sequence[str], make: Callable[[str], None]) -> dict[str, Any]:
    """Each stage, in order."""
    found = {}
    for stage in stages:
        drop_caches()
        before, began = counters(), time.perf_counter()
        make(stage)
        seconds = time.perf_counter() - began
        after = counters()
        served, stored, sent = (
            (one - other) / 1e6 for one, other in zip(after, before, strict=True)
        )
        took = Took(
            round(seconds, 1), *(round(each, 1) for each in (served, stored, sent - stored))
        )
        found[stage] = asdict(took)
        print(stage, took, file=sys.stderr, flush=True)
    return found


def drop_caches() -> None:
    """So that hosts read from the server, as hosts that share no memory do."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def counters() -> tuple[int, int, int]:
    """Bytes that the file server has sent and received, and that all hosts have sent."""
    (received, sent), others = traffic("files"), map(traffic, HOSTS)
    return sent, received, sum(each for _, each in others)


def traffic(host: str) -> tuple[int, int]:
    """Bytes that a host has received and sent since its start."""
    lines = hosts("exec", host, "cat", "/proc/net/dev").splitlines()
    (counts,) = (line.split()[1:] for line in lines if line.strip().startswith("eth0:"))
    return int(counts[0]), int(counts[8])


def by_one(stage: str) -> None:
    """On the first host alone."""
    address = ("--address", "local") if stage in ("score", "evaluate", "filter") else ()
    vcsoup("h1", stage, "one", *address)


def by_three(ranks: int) -> Callable[[str], None]:
    """On all of them, with Slurm and Ray; so many training ranks on each."""
    hosts("slurm")
    address = hosts("ray").split()[-1]

    def make(stage: str) -> None:
        if stage in ("score", "evaluate"):
            vcsoup("h1", stage, "three", "--address", address)
        elif stage in ("reference", "train"):
            submit(stage, ranks)
        elif stage == "merge":
            for rank in [subprocess.Popen(command) for command in merge_commands()]:
                if rank.wait():
                    raise SystemExit("merge: a rank failed")
            vcsoup("h1", "merge", "three", "--world-size", 3, "--finalise")
        else:
            vcsoup("h1", stage, "three", *(("--address", "local") if stage == "filter" else ()))

    return make


def submit(stage: str, ranks: int) -> None:
    """A job of some ranks on each host."""
    setup = f"VCSOUP_SETUP=PATH={HERE / '.venv' / 'bin'}:$PATH"
    shape = ("--nodes=3", f"--ntasks-per-node={ranks}", "--cpus-per-task=1")
    job = ("sbatch", "--wait", *shape)
    variables = ("env", setup, "VCSOUP_RUN_DIR=three")
    script = {"reference": "reference.sh", "train": "train_value.sh"}[stage]
    for value in VALUES if stage == "train" else [()]:
        hosts("exec", "control", *variables, *job, f"vcsoup/slurm/{script}", "recipe.yaml", *value)


def merge_commands() -> list[list[str]]:
    """One rank per host."""
    return [
        [str(SCRIPT), "exec", host, "vcsoup", "merge", "recipe.yaml", "--run-dir", "three",
         "--rank", str(rank), "--world-size", "3"]
        for rank, host in enumerate(HOSTS)
    ]  # fmt: skip


def sums(run: str) -> str:
    """Hashes of a run directory's policies, soups and answers."""
    folders = "$(ls -d scores policies soups evaluation 2>/dev/null)"
    command = f"cd {run} && find {folders} -type f | sort | xargs sha256sum"
    return hosts("exec", "h2", "sh", "-c", command)


if __name__ == "__main__":
    main()
