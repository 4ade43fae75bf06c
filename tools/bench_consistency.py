"""Time and memory of the consistency stage on generated scores.

    python tools/bench_consistency.py --pairs 1000000,10000000 --report consistency

Makes a run directory whose pairs and scores are finished, in the files that the first stage
writes, runs the stage by its entry in a process of its own, and prints JSON: wall time by pass,
peak memory of that process and of it with all its children, pairs/s. `--report` writes the JSON
into docs/benchmarks too.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from measuring import Usage, evict, git_state, hardware, measure

from vcsoup_dist.consistency import stage, value_pairs
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.pairs import HELD_OUT, PairsManifest, ShardFile, pairs_schema, shard_name
from vcsoup_dist.records.scores import ScoreShard, score_name, summarise, write_scores
from vcsoup_dist.workspace import Product, Workspace

HELD_OUT_PAIRS = 1000
WORDS = "the old house by the river has a small red door and nobody knows who lives there now"
REPORTS = Path(__file__).parents[1] / "docs" / "benchmarks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", default="1000000,10000000", help="numbers of pairs")
    parser.add_argument("--values", type=int, default=4)
    parser.add_argument("--shard-pairs", type=int, default=20_000)
    parser.add_argument("--methods", default="vc_soup")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a key of the recipe's `consistency`")  # fmt: skip
    parser.add_argument("--here", action="store_true", help="in one process, whatever the size")
    parser.add_argument("--ray", action="store_true", help="on Ray, whatever the size")
    parser.add_argument("--folder", type=Path, help="where to put the temporary files")
    parser.add_argument("--report", help="name of a file in docs/benchmarks")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_stage(options.run, options.here, options.ray)
        return
    runs = [bench(int(pairs), options) for pairs in options.pairs.split(",")]
    folder = options.folder or Path(tempfile.gettempdir())
    found = {"command": sys.argv, "git": git_state(), "hardware": hardware(folder), "runs": runs}
    print(json.dumps(found, indent=1))
    if options.report:
        path = REPORTS / f"{options.report}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")


def bench(pairs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Make a world of so many pairs, run the stage in it, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="bench-consistency-", dir=options.folder))
    try:
        started = time.perf_counter()
        make_world(folder, pairs, options)
        print(f"made in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        evict([folder], warm=False)
        usage, log = Usage(), folder / "log"
        command = [sys.executable, __file__, "--run", str(folder)]
        status = measure(
            command + ["--here"] * options.here + ["--ray"] * options.ray, log, None, usage
        )
        if status:
            raise SystemExit(log.read_text())
        found = json.loads((folder / "result.json").read_text())
        return {
            "pairs": pairs,
            "values": options.values,
            "shard_pairs": options.shard_pairs,
            "methods": options.methods.split(","),
            "consistency": options.set,
            "wall_s": usage.wall_s,
            "pairs_per_s": pairs / usage.wall_s,
            **found,
            "tree_peak_rss_bytes": usage.rss_bytes,
            "tree_peak_anon_bytes": usage.anon_bytes,
            "others_cpu_s": usage.others_cpu_s,
        }
    finally:
        shutil.rmtree(folder)


def run_stage(folder: Path, here: bool, on_ray: bool) -> None:
    """The stage alone, each of its passes timed by its own progress."""
    passes: dict[str, float] = {}

    @contextmanager
    def timed(title: str, total: float, unit: str) -> Iterator[Any]:
        started = time.perf_counter()
        yield lambda amount: None
        passes[title] = time.perf_counter() - started

    stage.progress = value_pairs.progress = timed
    if here:
        stage.ON_CLUSTER = sys.maxsize
    if on_ray:
        stage.ON_CLUSTER = 0
    recipe, workspace, plan = open_world(folder)
    started = time.perf_counter()
    stage.make(recipe, workspace, [each for each in plan if each.stage == "filter"])
    seconds = time.perf_counter() - started
    written = [file.stat().st_size for file in (folder / "run/filtered").rglob("pairs-*.parquet")]
    reports = [
        FilterReport.read(file.parent) for file in (folder / "run/filtered").rglob("report.json")
    ]
    result = {
        "on_ray": "ray" in sys.modules,
        "stage_s": seconds,
        "passes_s": passes,
        "kept": {report.method: report.counts.kept for report in reports},
        "pairs_bytes": sum(file.stat().st_size for file in (folder / "run/pairs").rglob("train-*")),
        "written_bytes": sum(written),
        "files": len(written),
        "driver_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    (folder / "result.json").write_text(json.dumps(result))


def open_world(folder: Path) -> tuple[Recipe, Workspace, list[Product]]:
    recipe = load_recipe(folder / "recipe.yaml")
    workspace = Workspace.open(folder / "run", recipe)
    return recipe, workspace, make_plan(recipe, Hashes(folder / "run" / "hashes.json"))


def make_world(folder: Path, pairs: int, options: argparse.Namespace) -> None:
    """A run directory of one dataset, its pairs and the scores of all values finished."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "judge.py").write_text("def judge(prompt, response):\n    return 0.0\n")
    (folder / "v0.jsonl").write_text("")
    values: dict[str, Any] = {
        f"v{j}": {
            "reward": {"columns": [f"v{j}+", f"v{j}-"]},
            "judge": {"callable": "judge.py:judge"},
        }
        for j in range(options.values)
    }
    values["v0"]["data"] = {"path": "v0.jsonl"}
    settings = {key: yaml.safe_load(each) for key, each in (s.split("=") for s in options.set)}
    recipe = {
        "name": "bench",
        "model": "model",
        "values": values,
        "methods": options.methods.split(","),
        "consistency": settings,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    _, workspace, plan = open_world(folder)
    parts = [
        (start, min(options.shard_pairs, pairs - start), False)
        for start in range(0, pairs, options.shard_pairs)
    ] + [(pairs, HELD_OUT_PAIRS, True)]
    for product in plan:
        if product.stage in ("read", "score"):
            with workspace.publishing(product) as draft:
                if product.stage == "read":
                    write_pairs(draft.output, parts)
                else:
                    write_value(draft.output, parts, int(str(product.value)[1:]))


def ids_of(start: int, rows: int) -> list[str]:
    """Of the pairs from number `start` on: as evenly spread as hashes are."""
    spread = np.arange(start, start + rows, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return [f"{i:016x}" for i in spread.tolist()]


def write_pairs(folder: Path, parts: list[tuple[int, int, bool]]) -> None:
    shards = []
    for number, (start, rows, heldout) in enumerate(parts):
        ids = ids_of(start, rows)
        prompts = [[{"role": "user", "content": f"{i}: tell me of {WORDS}?"}] for i in ids]
        chosen, rejected = ([f"{side} {WORDS[:50]} {i}" for i in ids] for side in ("Yes,", "No,"))
        columns = [ids, ids, ids, prompts, chosen, rejected]  # no prompt and no pair is there twice
        table = pa.Table.from_arrays(columns, schema=pairs_schema([]))
        file = HELD_OUT if heldout else shard_name(number)
        pq.write_table(table, folder / file)
        if not heldout:
            shards.append(ShardFile(file, rows))
    train = parts[-1][0]
    PairsManifest(train + HELD_OUT_PAIRS, train, HELD_OUT_PAIRS, shards).write(folder)


def write_value(folder: Path, parts: list[tuple[int, int, bool]], value: int) -> None:
    files: dict[bool, list[Path]] = {False: [], True: []}
    for start, rows, heldout in parts:
        shared = np.random.default_rng((1, start)).standard_normal((2, rows))
        own = np.random.default_rng((2, value, start)).standard_normal((2, rows))
        chosen, rejected = (value + 1) * (0.5 * shared + own)
        path = folder / score_name(len(files[heldout]), heldout)
        write_scores(path, ScoreShard(ids_of(start, rows), chosen, rejected))
        files[heldout].append(path)
    summarise(files[False], files[True]).write(folder)


if __name__ == "__main__":
    main()
