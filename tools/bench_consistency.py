"""Time and memory of the consistency stage on generated scores.

    python tools/bench_consistency.py --pairs 1000000,10000000 --shard-pairs 64,512,20000

Makes a run directory whose pairs and scores are finished, by the functions with which the first
stage writes them (without fsync), runs the stage by its entry in a process of its own once for each
size of scoring's shards, and prints JSON: wall time by pass, peak memory of that process and of it
with all its children, pairs/s, a hash of what was written. `--report` writes the JSON into
docs/benchmarks too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash
import yaml
from measuring import Usage, evict, git_state, hardware, measure

from vcsoup_dist import files
from vcsoup_dist.consistency import stage, value_pairs
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.preferences.pair import Pair, pair_id
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.scores import ScoreShard, summarise, write_scores
from vcsoup_dist.scoring import reading
from vcsoup_dist.scoring.score_files import score_files
from vcsoup_dist.workspace import Product, Workspace

HELD_OUT_PAIRS = 1000
WORDS = "the old house by the river has a small red door and nobody knows who lives there now"
REPORTS = Path(__file__).parents[1] / "docs" / "benchmarks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", default="1000000,10000000", help="numbers of pairs")
    parser.add_argument("--values", type=int, default=4)
    parser.add_argument("--shard-pairs", default="512", help="sizes of scoring's shards")
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
    runs = [run for pairs in options.pairs.split(",") for run in bench(int(pairs), options)]
    folder = options.folder or Path(tempfile.gettempdir())
    found = {"command": sys.argv, "git": git_state(), "hardware": hardware(folder), "runs": runs}
    print(json.dumps(found, indent=1))
    if options.report:
        path = REPORTS / f"{options.report}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")


def bench(pairs: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Make a world of so many pairs, run the stage in it for each size of shards, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="bench-consistency-", dir=options.folder))
    try:
        write_world(folder, options)
        for shard_pairs in map(int, options.shard_pairs.split(",")):
            started = time.perf_counter()
            make_inputs(folder, pairs, shard_pairs)
            made_s = time.perf_counter() - started
            print(f"shards of {shard_pairs}: made in {made_s:.0f} s", file=sys.stderr)
            shutil.rmtree(folder / "run" / "filtered", ignore_errors=True)
            found = bench_stage(folder, options)
            print(f"filtered in {found['wall_s']:.0f} s: {json.dumps(found)}", file=sys.stderr)
            yield {
                "pairs": pairs,
                "values": options.values,
                "shard_pairs": shard_pairs,
                "methods": options.methods.split(","),
                "consistency": options.set,
                "pairs_per_s": pairs / found["wall_s"],
                **found,
            }
    finally:
        shutil.rmtree(folder)


def bench_stage(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the stage in a process of its own, on files that are not in memory."""
    os.sync()
    evict([folder], warm=False)
    usage, log = Usage(), folder / "log"
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, "--run", str(folder)]
    status = measure(
        command + ["--here"] * options.here + ["--ray"] * options.ray, log, None, usage
    )
    if status:
        raise SystemExit(log.read_text())
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    written = sorted((folder / "run" / "filtered").rglob("*.parquet"))
    return {
        "wall_s": usage.wall_s,
        "cpu_s": usage.cpu_s,
        **found,
        "written_bytes": sum(file.stat().st_size for file in written),
        "files": len(written),
        "written_xxh3": hash_of(written),
        "tree_peak_rss_bytes": usage.rss_bytes,
        "tree_peak_anon_bytes": usage.anon_bytes,
        "others_cpu_s": usage.others_cpu_s,
        "load_before": load,
    }


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
    reports = [
        FilterReport.read(file.parent) for file in (folder / "run/filtered").rglob("report.json")
    ]
    result = {
        "on_ray": "ray" in sys.modules,
        "stage_s": seconds,
        "passes_s": passes,
        "kept": {report.method: report.counts.kept for report in reports},
        "pairs_bytes": sum(file.stat().st_size for file in (folder / "run/pairs").rglob("train-*")),
        "driver_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    (folder / "result.json").write_text(json.dumps(result))


def hash_of(paths: Sequence[Path]) -> str:
    digest = xxhash.xxh3_128()
    for path in paths:
        with open(path, "rb") as source:
            while piece := source.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()


def open_world(folder: Path) -> tuple[Recipe, Workspace, list[Product]]:
    recipe = load_recipe(folder / "recipe.yaml")
    workspace = Workspace.open(folder / "run", recipe)
    return recipe, workspace, make_plan(recipe, Hashes(folder / "run" / "hashes.json"))


def write_world(folder: Path, options: argparse.Namespace) -> None:
    """A recipe of one dataset and the values' rewards, from columns."""
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


def make_inputs(folder: Path, pairs: int, shard_pairs: int) -> None:
    """Make the pairs, unless they are there, and all values' scores, in shards at first."""
    file = folder / "recipe.yaml"
    recipe = yaml.safe_load(file.read_text()) | {"scoring": {"shard_pairs": shard_pairs}}
    file.write_text(yaml.safe_dump(recipe))
    _, workspace, plan = open_world(folder)
    fsync, files.sync = files.sync, lambda path: None
    try:
        for product in plan:
            if product.stage in ("read", "score") and not workspace.is_made(product):
                with workspace.publishing(product) as draft:
                    if product.stage == "read":
                        write_pairs(draft.output, pairs)
                    else:
                        folder_of_pairs = workspace.need(product.inputs[0])
                        write_value(draft.output, folder_of_pairs, product.value, shard_pairs)
    finally:
        files.sync = fsync


def write_pairs(folder: Path, pairs: int) -> None:
    """By the function of stage `read`."""
    reading.write_pairs(
        folder,
        reading.Source("train", enumerate(map(draw_pair, range(pairs)))),
        reading.Source("heldout", enumerate(map(draw_pair, range(-HELD_OUT_PAIRS, 0)))),
        heldout_share=0.0,
        limit=None,
        columns=[],
        max_bad_rows=0.0,
    )


def draw_pair(number: int) -> Pair:
    prompt = [{"role": "user", "content": f"{number}: tell me of {WORDS}?"}]
    chosen, rejected = (f"{side} {WORDS[:50]} {number}" for side in ("Yes,", "No,"))
    return Pair(pair_id(prompt, chosen, rejected), prompt, chosen, rejected)


def write_value(folder: Path, pairs: Path, value: str | None, shard_pairs: int) -> None:
    """As scoring leaves it: a file per shard, joined in the end."""
    unit = int(str(value)[1:])
    made = score_files(pairs, folder, shard_pairs)
    for number, each in enumerate(made):
        ids = pq.read_table(pairs / each.file.name, columns=["id"])["id"].to_pylist()
        shared = np.random.default_rng((1, number)).standard_normal((2, len(ids)))
        own = np.random.default_rng((2, unit, number)).standard_normal((2, len(ids)))
        chosen, rejected = (unit + 1) * (0.5 * shared + own)
        for part, shard in each.shards.items():
            rows = slice(part.first, part.first + part.rows)
            write_scores(shard, ScoreShard(ids[rows], chosen[rows], rejected[rows]))
        each.join()
    summarise(folder, [each.file.name for each in made]).write(folder)


if __name__ == "__main__":
    main()
