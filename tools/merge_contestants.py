"""Who is measured by bench_merge.py, and with which commands."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from measuring import CORES, Usage

FLOOR = Path(__file__).with_name("io_floor.py")
DISCARD = Path(__file__).with_name("merge_discard.py")
MERGEKIT_ADVICE = (
    "mergekit is left out; to measure it: python3.11 -m venv DIR; "
    "DIR/bin/pip install mergekit==0.1.5 torch==2.13.0; then --mergekit DIR/bin"
)


@dataclass
class Contestant:
    name: str
    commands: Callable[[Path], list[list[str]]]
    """From the directory for outputs, which exists, to the commands to run one after another."""
    rounds: list[Usage] = field(default_factory=list)
    failure: str | None = None


def contestants(args: argparse.Namespace, scratch: Path) -> tuple[list[Contestant], list[str]]:
    """Those asked for that can run here, and a line for each that cannot."""
    policies: list[Path] = args.policies
    weights: list[list[float]] = args.weights
    soups = [f"soup{i}" for i in range(len(weights))]
    inputs = [str(policy) for policy in policies]
    shards = shards_of(policies[0])
    shard_size = args.mergekit_shard_size or max(path.stat().st_size for path in shards)
    mergekit = ["--out-shard-size", str(shard_size), "-j", str(CORES), "--quiet"]

    def floor(out: Path, *options: str) -> list[list[str]]:
        outputs = [str(out / soup) for soup in soups]
        call = [sys.executable, str(FLOOR), *inputs, "--threads", str(args.threads)]
        return [[*call, "--outputs", *outputs, *options]]

    def copy(out: Path) -> list[list[str]]:
        for soup in soups:
            (out / soup).mkdir()
        copies = [["cp", "--reflink=never", *map(str, shards), str(out / soup)] for soup in soups]
        return [*copies, ["sync", *(str(out / s / path.name) for s in soups for path in shards)]]

    def project(out: Path) -> list[list[str]]:
        vectors = [x for w in weights for x in ("--weights", ",".join(map(str, w)))]
        options = shlex.split(args.project_options)
        return [[str(args.vcsoup), "merge", *inputs, *vectors, "--out", str(out / "p"), *options]]

    def recipe(vector: list[float], **extra: str) -> str:
        models = [
            {"model": policy, "parameters": {"weight": weight}}
            for policy, weight in zip(inputs, vector, strict=True)
        ]
        document = {"models": models, "merge_method": "linear", "dtype": "bfloat16"}
        return json.dumps({**document, "parameters": {"normalize": False}, **extra})

    def discard(out: Path) -> list[list[str]]:
        vectors = [x for w in weights for x in ("--weights", ",".join(map(str, w)))]
        return [[str(args.vcsoup.with_name("python")), str(DISCARD), *inputs, *vectors]]

    def mergekit_linear(out: Path) -> list[list[str]]:
        commands = []
        for soup, vector in zip(soups, weights, strict=True):
            config = scratch / f"{soup}.yml"
            config.write_text(recipe(vector))
            program = str(args.mergekit / "mergekit-yaml")
            commands.append([program, str(config), str(out / soup), *mergekit])
        return commands

    def mergekit_multi(out: Path) -> list[list[str]]:
        config = scratch / "multi.yml"
        named = zip(soups, weights, strict=True)
        config.write_text("\n---\n".join(recipe(vector, name=soup) for soup, vector in named))
        return [[str(args.mergekit / "mergekit-multi"), str(config), "-I", str(out), *mergekit]]

    makers: dict[str, Callable[[Path], list[list[str]]]] = {
        "floor": floor,
        "floor-buffered": lambda out: floor(out, "--buffered"),
        "cp": copy,
        "project": project,
        "project-discard": discard,
        "mergekit": mergekit_linear,
        "mergekit-multi": mergekit_multi,
    }
    wanted = args.contestants or [name for name in makers if name != "project-discard"]
    if unknown := set(wanted) - set(makers):
        raise SystemExit(f"no contestant {', '.join(sorted(unknown))}; there are {list(makers)}")
    impossible: dict[str, str | None] = {}
    if not _runs([str(args.vcsoup), "merge", "--help"]):
        impossible["project"] = f"project is left out: `{args.vcsoup} merge` does not run"
    if not (args.mergekit and _runs([str(args.mergekit / "mergekit-yaml"), "--help"])):
        impossible |= {"mergekit": MERGEKIT_ADVICE, "mergekit-multi": None}
    elif len(weights) == 1:
        impossible["mergekit-multi"] = None  # the same as mergekit
    notes = [impossible[name] for name in wanted if name in impossible]
    running = [Contestant(name, makers[name]) for name in wanted if name not in impossible]
    return running, [note for note in notes if note]


def shards_of(policy: Path) -> list[Path]:
    return sorted(policy.glob("*.safetensors"))


def weights_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
