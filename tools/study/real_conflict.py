#!/usr/bin/env python
"""How conflict matters on real pairs: a few points, exploratory.

    python tools/study/real_conflict.py --model MODEL --out study

OUT is a folder in which `real.py` has made rewards and cross-fitted scores. For each share of
conflicting pairs it draws as many pairs of each value without replacement, a pair being in conflict
where the two rewards disagree on it, and makes a run of `real.yaml` with all pairs and with the
consistent ones. OUT/results/real_conflict.json has the differences. Resumes as `real.py` does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import contrasts
import results
from folds import VALUES

from vcsoup_dist.files import write_atomically
from vcsoup_dist.report.comparing.finished import read_run
from vcsoup_dist.report.statistics.evaluated import check_shared
from vcsoup_dist.report.statistics.scale import choose_scale

HERE = Path(__file__).resolve().parent
PAIRS = 240
"""Of each value, at every share."""
METHODS = (
    "{rewarded_soup: {learning_rate: 3.0e-4, beta: 0.03},"
    " strict: {kind: vc_soup, threshold: 0.707, learning_rate: 3.0e-4, beta: 0.03}}"
)
CHANGES = (f"methods={METHODS}", "seeds=[0, 1]", "soup.grid=0.5", "evaluation.prompts=60")
COMPARED = (("strict", "rewarded_soup"),)

Row = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="theta_0, as for real.py")
    parser.add_argument("--out", type=Path, required=True, help="the folder of real.py")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.8])
    parser.add_argument("--set", action="append", default=[], help="as `vcsoup run --set`")
    options = parser.parse_args()
    out = options.out.resolve()
    found = [point(out, options.model.resolve(), share, options.set) for share in options.shares]
    text = json.dumps({"pairs": PAIRS, "points": found}, indent=1) + "\n"
    write_atomically(out / "results" / "real_conflict.json", text)
    print(text)


def point(out: Path, model: Path, share: float, changes: Sequence[str]) -> dict[str, Any]:
    """Run one share, and compare."""
    folder = out / "conflict_on_real_pairs" / f"share-{share:g}"
    write_data(out, folder, share)
    environment = os.environ | {
        "VCSOUP_STUDY": str(folder),
        "VCSOUP_STUDY_MODEL": str(model),
    }
    command = [sys.executable, "-m", "vcsoup_dist.cli", "run", str(HERE / "real.yaml")]
    command += [part for change in (*CHANGES, *changes) for part in ("--set", change)]
    run_dir = folder / "run"
    subprocess.run([*command, "--run-dir", str(run_dir)], env=environment, check=True)
    evaluated = list(read_run(run_dir, run_dir.name).evaluated)
    by_judge = {
        "classifiers": evaluated,
        "words": results.judged_by_words(run_dir, evaluated, folder),
    }
    return {
        "share": share,
        "kept": [
            {name: row[name] for name in ("method", "value", "pairs", "kept")}
            for row in results.kept(run_dir)
        ],
    } | {
        judge: [
            asdict(each)
            for each in contrasts.at_equal_cost(
                rows, choose_scale(rows, check_shared(rows)), COMPARED
            )
        ]
        for judge, rows in by_judge.items()
    }


def write_data(out: Path, folder: Path, share: float) -> None:
    """A study's folder with fewer training pairs, the same rewards and the same held-out pairs."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    rewards = folder / "rewards"
    if not rewards.exists():
        rewards.symlink_to(out / "rewards")
    for value in VALUES:
        shutil.copyfile(out / "data" / f"{value}_test.jsonl", data / f"{value}_test.jsonl")
        lines = (out / "data" / f"{value}_train.jsonl").read_text().splitlines(keepends=True)
        drawn = draw(lines, share, random.Random(f"real-conflict/{share}/{value}"))
        write_atomically(data / f"{value}_train.jsonl", "".join(drawn))


def draw(lines: Sequence[str], share: float, rng: random.Random) -> list[str]:
    """`PAIRS` rows, `share` of them in conflict; SystemExit where there are too few."""
    conflicting = round(share * PAIRS)
    wanted = {True: conflicting, False: PAIRS - conflicting}
    drawn: list[str] = []
    for kind, count in wanted.items():
        those = list(_of_kind(lines, kind))
        if len(those) < count:
            raise SystemExit(f"{count} pairs are more than the {len(those)} that there are")
        drawn += rng.sample(those, count)
    rng.shuffle(drawn)
    return drawn


def _of_kind(lines: Sequence[str], conflict: bool) -> Iterator[str]:
    for line in lines:
        row: Row = json.loads(line)
        first, second = (row[f"{v}_chosen"] - row[f"{v}_rejected"] for v in VALUES)
        if first * second != 0 and (first * second < 0) is conflict:
            yield line


if __name__ == "__main__":
    main()
