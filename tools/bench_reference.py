"""Pairs that reference log-probs and rewards are computed for, per pair that something reads.

    python tools/bench_reference.py --report reference
    python tools/bench_reference.py --code OTHER_CHECKOUT

Writes two datasets, of which a quarter is held out, and a small random Llama. Then it runs the
stages to the reference for one method that keeps 30 % of the pairs, evaluates few held-out ones and
borrows none; and again after a method without a filter was added. `--code`: the checkout to run;
one from before references had parts computes every pair. Prints JSON; `--report` writes it into
docs/benchmarks too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from bench_memory import WORDS, make_model
from measuring import git_state, hardware

HERE = Path(__file__).parents[1]
REPORTS = HERE / "docs" / "benchmarks"
VALUES = ("one", "two")
HELD_OUT_PAIRS = 32
"""That a policy evaluates."""
PROMPT, ANSWER = 40, 60
"""Words, each a token."""
COMMAND = "from vcsoup_dist.cli.main import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=2000, help="of each dataset")
    parser.add_argument("--code", type=Path, default=HERE, help="checkout that is run")
    parser.add_argument("--report", help="name of a file in docs/benchmarks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-reference-") as root:
        folder = Path(root)
        write_world(folder, options.pairs)
        found = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "command": sys.argv,
            "git": git_state(),
            "hardware": hardware(folder),
            "pairs_of_a_dataset": options.pairs,
            "one method": run(folder, options.code, {"vc_soup": {"ratio": 0.3}}),
            "a method added": run(
                folder, options.code, {"vc_soup": {"ratio": 0.3}, "rewarded_soup": {}}
            ),
        }
    print(json.dumps(found, indent=1))
    if options.report:
        (REPORTS / f"{options.report}.json").write_text(json.dumps(found, indent=1) + "\n")


def write_world(folder: Path, pairs: int) -> None:
    """Data with rewards in columns, and a model."""
    make_model(folder / "base", "3M")
    write_pairs(folder, pairs)


def write_pairs(folder: Path, pairs: int) -> None:
    """`one.jsonl` and `two.jsonl`, each pair with two rewards as columns."""
    for seed, name in enumerate(VALUES):
        draw = random.Random(seed)

        def text(words: int, draw: random.Random = draw) -> str:
            return " ".join(draw.choices(WORDS, k=words))

        rows = [
            {
                "prompt": text(PROMPT), "chosen": text(ANSWER), "rejected": text(ANSWER),
                **{f"{value}{side}": draw.gauss(0, 1) for value in VALUES for side in "+-"},
            }
            for _ in range(pairs)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder: Path, code: Path, methods: dict[str, Any]) -> dict[str, Any]:
    """Make the reference of these methods, and count."""
    recipe = {
        "name": "frugal",
        "model": "base",
        "values": {
            name: {
                "data": {"path": f"{name}.jsonl", "heldout_share": 0.25},
                "reward": {"columns": [f"{name}+", f"{name}-"]},
                "judge": {"callable": "operator:eq"},
            }
            for name in VALUES
        },
        "methods": methods,
        "training": {"dtype": "fp32", "heldout_pairs": HELD_OUT_PAIRS, "tokens_per_batch": 4096},
        "launch": {"ranks": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    seconds = {}
    environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    for command in ("score", "filter", "reference"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", COMMAND, command, "recipe.yaml", "-d", "run"],
            cwd=folder, env=environment, text=True, capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        printed = done.stdout + done.stderr
        seconds |= {
            stage: float(time)
            for stage, time in re.findall(r"== (\w+): done in ([\d.]+) s", printed)
        }
    computed, read = computed_pairs(folder / "run"), read_pairs(folder / "run", methods)
    return {
        "reference_pairs_computed": computed,
        "reference_pairs_read": read,
        "computed_per_read": round(computed / read, 3),
        "reference_seconds": seconds.get("reference"),
        "held_out_rewards": held_out_rewards(folder / "run"),
    }


def computed_pairs(run: Path) -> int:
    """With log-probs, in whichever format."""
    parts = run.glob("reference/*/part-*/rows.npy")
    whole = run.glob("reference/*/manifest.json")
    return sum(len(np.load(each)) for each in parts) + sum(
        json.loads(each.read_text())["rows"] for each in whole
    )


def read_pairs(run: Path, methods: dict[str, Any]) -> int:
    """That a policy of the methods trains on or evaluates; none is too long."""
    found = set()
    for method in methods:
        for folder in (run / "filtered" / method).iterdir():
            for file in folder.glob("*.parquet"):
                limit = HELD_OUT_PAIRS if file.name == "heldout.parquet" else None
                table = pq.read_table(file, columns=["dataset", "id"]).slice(0, limit)
                found |= set(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return len(found)


def held_out_rewards(run: Path) -> int:
    """Rewards of held-out pairs, which nothing reads here."""
    files = run.glob("scores/*/*/heldout.parquet")
    return sum(pq.read_metadata(each).num_rows for each in files)


if __name__ == "__main__":
    main()
