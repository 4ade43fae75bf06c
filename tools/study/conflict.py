"""How conflict matters: the gain of the consistency filter against the share of conflicting pairs.

    python tools/study/conflict.py --out runs/conflict

The learning rate was chosen before, by a pilot of the method without a filter on other data:

    python tools/study/conflict.py --out runs/conflict-pilot/2e-4 --world runs/conflict/world \\
        --shares 0.5 --seeds 1000 --set 'methods={rewarded_soup: {}}' \\
        --set training.learning_rate=2.0e-4

Makes the demo's world, a data set for every share of conflicting pairs and every seed
(`conflict_data.py`), a run of `conflict.yaml` of each by `vcsoup run`, and from their answers
OUT/conflict.json, OUT/conflict.md and OUT/conflict.svg (`conflict_curve.py` says what is measured).
Run again, it goes on where it was ended, and trains nothing anew.

The filter and the judge are the world's exact rewards: this asks what filtering by consistency
brings where the rewards are right, and nothing of rewards that are learned.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from conflict_curve import CONFIDENCE, SCALE, Measured, verdicts
from conflict_data import VALUES, write_data, write_held_out
from conflict_show import Kept, figure, markdown
from stage_seconds import seconds_by_stage

from vcsoup_dist.demo.world import make_world
from vcsoup_dist.files import write_atomically
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.report.comparing.finished import FinishedRun, read_run
from vcsoup_dist.report.statistics.evaluated import Evaluated

RECIPE = Path(__file__).with_name("conflict.yaml")
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
SEEDS = (0, 1, 2)
TRAIN, HELD_OUT = 240, 100
"""Pairs per value."""
FILTERS = ("vc_soup", "strict")
SHOWN = 2000  # characters of the log of a run that failed


def make_runs(options: argparse.Namespace) -> None:
    """The world, all data and all runs; SystemExit where a run fails."""
    held_out = options.out / "data" / "held-out"
    make_world(options.world, lambda line: print(line, flush=True))
    write_held_out(held_out, HELD_OUT)
    names = [(share, seed) for seed in options.seeds for share in options.shares]
    with ThreadPoolExecutor(options.jobs) as pool:
        begun = [pool.submit(make_run, options, share, seed) for share, seed in names]
        try:
            for each in begun:
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def make_run(options: argparse.Namespace, share: float, seed: int) -> None:
    """One share and seed: its data, and what of its run is missing."""
    data = options.out / "data" / run_name(share, seed)
    write_data(data, TRAIN, share, seed)
    command = [sys.executable, "-m", "vcsoup_dist.cli", "run", str(RECIPE)]
    command += ["--run-dir", str(run_folder(options.out, share, seed))]
    command += [word for each in options.set for word in ("--set", each)]
    environment = os.environ | {
        "VCSOUP_WORLD": str(options.world),
        "VCSOUP_HELD_OUT": str(options.out / "data" / "held-out"),
        "VCSOUP_DATA": str(data),
        "VCSOUP_SEED": str(seed),
        "CUDA_VISIBLE_DEVICES": "",  # the same on every machine
    }
    log = options.out / "logs" / f"{run_name(share, seed)}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        ended = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    if ended.returncode:
        raise SystemExit(f"{log.read_text()[-SHOWN:]}\n{run_name(share, seed)} failed; see {log}")
    print(f"{run_name(share, seed)} is made", flush=True)


def run_name(share: float, seed: int) -> str:
    """Of a run, and of its data."""
    return f"share-{share:g}-seed-{seed}"


def run_folder(out: Path, share: float, seed: int) -> Path:
    """The run directory."""
    return out / "runs" / run_name(share, seed)


def answers_of(runs: Mapping[int, FinishedRun]) -> list[Evaluated]:
    """All evaluations of one share, by seed; theta_0, which is the same in all, once."""
    return [
        each
        for place, run in enumerate(runs.values())
        for each in run.evaluated
        if each.method is not None or place == 0
    ]


def kept_pairs(
    out: Path, filters: Sequence[str], shares: Sequence[float], seeds: Sequence[int]
) -> list[Kept]:
    """What the filters left, from their own reports."""
    found = []
    for share in shares:
        for method in filters:
            for value in VALUES:
                counts = [
                    FilterReport.read(
                        run_folder(out, share, seed) / "filtered" / method / value
                    ).counts
                    for seed in seeds
                ]
                kept = float(np.mean([each.kept / each.pairs for each in counts]))
                agreeing = [each.sign_patterns_kept.get("++", 0) / each.kept for each in counts]
                found.append(Kept(share, method, value, kept, 1 - float(np.mean(agreeing))))
    return found


def write_results(options: argparse.Namespace) -> None:
    """The JSON, the tables and the figure."""
    runs = {
        share: {
            seed: read_run(run_folder(options.out, share, seed), run_name(share, seed))
            for seed in options.seeds
        }
        for share in options.shares
    }
    prompts = {run.prompts for by_seed in runs.values() for run in by_seed.values()}
    if len(prompts) > 1:
        raise SystemExit("the runs answer different prompts; take another --out")
    measured = Measured({share: answers_of(by_seed) for share, by_seed in runs.items()})
    curves, levels = measured.curves(), measured.levels()
    filters = [method for method in FILTERS if method in measured.methods]
    kept = kept_pairs(options.out, filters, options.shares, options.seeds)
    roots = [run_folder(options.out, share, seed) for share in options.shares
             for seed in options.seeds]  # fmt: skip
    content = {
        "confidence": CONFIDENCE,
        "scale": asdict(SCALE),
        "pairs_per_value": TRAIN,
        "prompts": len(prompts.pop()),
        "seeds": options.seeds,
        "set": options.set,
        "verdicts": [asdict(each) for each in verdicts(curves)],
        "curves": [asdict(each) for each in curves],
        "levels": [asdict(each) for each in levels],
        "kept": [asdict(each) for each in kept],
        "seconds": seconds_by_stage(roots),
    }
    text = markdown(curves, levels, kept, len(options.seeds), content["prompts"])
    write_atomically(options.out / "conflict.json", json.dumps(content, indent=1) + "\n")
    write_atomically(options.out / "conflict.md", text)
    if curves:
        write_atomically(options.out / "conflict.svg", figure(curves))
    print(text)
    for each in verdicts(curves):
        grows = "grows" if each.grows else "is not shown to grow"
        print(f"{each.filter}: {each.gain}; the gain {grows} with the share of conflicting pairs")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of all that is made")
    parser.add_argument("--world", type=Path, help="the demo's world; by default OUT/world")
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a key of conflict.yaml, as for `vcsoup run`; repeatable")  # fmt: skip
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.world = (options.world or options.out / "world").resolve()
    options.shares = sorted(set(options.shares))
    options.seeds = sorted(set(options.seeds))
    make_runs(options)
    write_results(options)


if __name__ == "__main__":
    main()
