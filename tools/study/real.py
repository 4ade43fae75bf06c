#!/usr/bin/env python
"""The study on real preference data, from data to tables and figures; docs/results/study.

    python tools/study/real.py --data DATA --model MODEL --out study tuning
    python tools/study/real.py --data DATA --model MODEL --out study pilot
    python tools/study/real.py --data DATA --model MODEL --out study real

DATA holds {helpful,harmless}_{train,test}.jsonl. The steps: folds of prompts, rewards and judges,
cross-fitted scores, the recipe of that name in this folder by `vcsoup run`, and what came of it.
Each is skipped where its result is there, so the same command resumes; other data or models need a
folder of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import power
import results
import tuning
import words
from folds import FOLDS, JUDGES, VALUES, fold_of, pairs_in, write_pairs
from score_folds import crossfit, write_data

from vcsoup_dist.files import write_atomically
from vcsoup_dist.identity import Hashes
from vcsoup_dist.preferences.pair import Pair, prompt_id

HERE = Path(__file__).resolve().parent
Pairs = dict[str, list[Pair]]
RESULTS = {
    "tuning": tuning.write,
    "pilot": power.write,
    "real": results.write,
    "every_method": None,  # the report of the run says it all
}
PASSES = {"helpful": 1, "harmless": 2}
"""Over a reward's fold. Answers to helpful prompts are longer, and easier to tell apart."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the preference data")
    parser.add_argument("--model", type=Path, required=True, help="theta_0, a chat model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("recipe", choices=RESULTS, help="what to run")
    parser.add_argument("--rewards-from", type=Path, help="the model that rewards start from")
    parser.add_argument(
        "--at-once", type=int, default=2, help="rewards trained at once, a core each"
    )
    parser.add_argument("--set", action="append", default=[], help="as `vcsoup run --set`")
    options = parser.parse_args()
    out = options.out.resolve()
    check_inputs(options.data, [options.model, options.rewards_from or options.model], out)
    training = {value: list(pairs_in(options.data / f"{value}_train.jsonl")) for value in VALUES}
    heldout = {value: list(pairs_in(options.data / f"{value}_test.jsonl")) for value in VALUES}
    check_heldout(training, heldout)
    train_rewards(training, options.rewards_from or options.model, out, options.at_once)
    prepare_data(training, heldout, out)
    run_dir = out / "runs" / options.recipe
    environment = os.environ | {
        "VCSOUP_STUDY": str(out),
        "VCSOUP_STUDY_MODEL": str(options.model.resolve()),
    }
    command = [sys.executable, "-m", "vcsoup_dist.cli", "run", str(HERE / f"{options.recipe}.yaml")]
    changes = [part for change in options.set for part in ("--set", change)]
    subprocess.run([*command, "--run-dir", str(run_dir), *changes], env=environment, check=True)
    write = RESULTS[options.recipe]
    if write is not None:
        folder = out / "results" / options.recipe
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write(run_dir, out, folder)
        except ValueError as error:  # of a run with fewer methods
            raise SystemExit(f"{error}; the run's own report is {run_dir}/report") from error


def check_inputs(data: Path, models: Sequence[Path], out: Path) -> None:
    """SystemExit where `out` was made of other data or models."""
    out.mkdir(parents=True, exist_ok=True)
    hashes = Hashes(out / "hashes.json")
    files = [data / f"{value}_{part}.jsonl" for value in VALUES for part in ("train", "test")]
    if missing := [str(path) for path in (*files, *models) if not path.exists()]:
        raise SystemExit(f"not there: {', '.join(missing)}")
    found = json.dumps([hashes.of(path.resolve()) for path in (*files, *models)]) + "\n"
    hashes.save()
    known = out / "inputs.json"
    if known.exists() and known.read_text() != found:
        raise SystemExit(f"{out} was made of other data or models; give another folder to --out")
    write_atomically(known, found)


def check_heldout(training: Pairs, heldout: Pairs) -> None:
    """SystemExit where a held-out prompt is in training data, which the judges have seen."""
    seen = {prompt_id(pair.prompt) for pairs in training.values() for pair in pairs}
    for value, pairs in heldout.items():
        shared = sum(prompt_id(pair.prompt) in seen for pair in pairs)
        if shared:
            raise SystemExit(f"{value}_test.jsonl: {shared} pairs have prompts of training data")


def train_rewards(training: Pairs, model: Path, out: Path, at_once: int) -> None:
    """Six classifiers and two bags of words, those that are not there."""
    (out / "rewards").mkdir(parents=True, exist_ok=True)

    def train(name: str) -> None:
        value, fold = name.split("_")
        pairs = out / "folds" / f"{name}.jsonl"
        write_pairs(pairs, [p for p in training[value] if fold_of(p) == int(fold)])
        script = HERE / "train_reward.py"
        arguments = ["--pairs", str(pairs), "--model", str(model), "--seed", fold]
        arguments += ["--passes", str(PASSES[value])]
        with (out / "rewards" / f"{name}.log").open("a") as log:
            print(f"reward {name}: training", flush=True)
            subprocess.run(
                [sys.executable, str(script), *arguments, "--out", str(out / "rewards" / name)],
                stdout=log,
                stderr=log,
                check=True,
            )

    names = [f"{value}_{fold}" for fold in range(FOLDS) for value in VALUES]
    missing = [name for name in names if not (out / "rewards" / name).exists()]
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(train, missing))
    for value in VALUES:
        path = words_of(out, value)
        if not path.exists():
            words.train([p for p in training[value] if fold_of(p) == JUDGES], path)


def words_of(out: Path, value: str) -> Path:
    """The second judge of a value."""
    return out / "rewards" / f"words_{value}.json"


def prepare_data(training: Pairs, heldout: Pairs, out: Path) -> None:
    """The recipes' data with cross-fitted scores; rewards.json says what rewards are worth."""
    facts = out / "results" / "rewards.json"
    if facts.exists():
        return
    columns, found = crossfit(out / "rewards", training, heldout)
    write_data(out / "data", training, heldout, columns)
    for value in VALUES:
        found[f"{value}_words"] = words.worth(words_of(out, value), training[value], heldout[value])
    facts.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(facts, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
