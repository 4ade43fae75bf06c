"""Measure `vcsoup merge` against mergekit, `cp` and the same I/O without arithmetic.

    python tools/bench_merge.py make /data/bench --size 1.9GB
    python tools/bench_merge.py run /data/bench/P0 /data/bench/P1 --weights 0.3,0.7 \\
        --mergekit /opt/mergekit/bin --report merge-k1

measures one soup. Four soups, confined to 3.6 GB of memory with page cache, so that inputs cannot
stay cached and reading them again costs what it costs with checkpoints larger than the memory:

    python tools/bench_merge.py run /data/bench/P0 /data/bench/P1 --limit-memory 3.6GB \\
        --weights 0.2,0.8 --weights 0.4,0.6 --weights 0.6,0.4 --weights 0.8,0.2 \\
        --mergekit /opt/mergekit/bin --report merge-k4

`run` prints a Markdown table of medians and writes it to REPORT.md, with every round in
REPORT.json. mergekit needs an environment of its own:

    python3.11 -m venv /opt/mergekit
    /opt/mergekit/bin/pip install mergekit==0.1.5 torch==2.13.0

runs with transformers 5.23.0, safetensors 0.8.0, accelerate 1.15.0, pydantic 2.14.3, click 8.5.1
and huggingface_hub 2.4.0. Where PyPI's torch is a CUDA build, the CPU build is on
https://download.pytorch.org/whl/cpu. See `run --help` for what the columns mean.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path

import merge_shapes
from measuring import MemoryLimit, Usage, evict, fsync, git_state, hardware, measure
from merge_contestants import Contestant, contestants, shards_of, weights_size

COLUMNS = """\
columns:
  wall s      until the last process has ended
  on disk s   the same, plus the time to fsync what it left in the page cache; ratios are of this
  CPU s       user + system, of the whole process tree
  peak RSS    of the process tree together, sampled every 20 ms; pages shared by processes count
              once per process
  peak anon   the same without pages of files: anonymous and shared memory
  GB read     from the block layer (ru_inblock); what the page cache served is not in it
  GB written  made dirty or written with O_DIRECT (ru_oublock)

Before each run all inputs are evicted from the page cache (--warm reads them into it instead) and
earlier outputs are removed. Contestants alternate: every round runs each once, beginning with
another one.
"""


# A benchmark: rounds, then the report.


def bench(args: argparse.Namespace) -> None:
    _check(args)
    # mergekit looks a relative path up on the hub.
    args.policies = [policy.resolve() for policy in args.policies]
    args.work = args.work or args.policies[0].parent
    expected = len(args.weights) * weights_size(args.policies[0])
    writes = args.contestants != ["project-discard"]
    if writes and shutil.disk_usage(args.work).free < 1.05 * expected:
        raise SystemExit(f"{args.work} needs {1.05 * expected / 1e9:.1f} GB of free space")
    with tempfile.TemporaryDirectory(prefix="bench-merge-", dir=args.work) as scratch:
        running, notes = contestants(args, Path(scratch))
        limit = MemoryLimit(args.limit_memory) if args.limit_memory else None
        if limit and (reason := limit.why_not()):
            notes.append(f"memory is NOT limited: {reason}")
            limit = None
        for note in notes:
            print(note, file=sys.stderr)
        for number in range(args.rounds):
            first = number % len(running)
            for contestant in (*running[first:], *running[:first]):
                if not contestant.failure:
                    _run_once(contestant, args, Path(scratch), limit, expected)
                    _say(number, contestant)
        facts = _facts(args, limit is not None, notes)
    report = {**facts, "contestants": [_record(contestant) for contestant in running]}
    table = markdown(running, facts, notes)
    args.report.parent.mkdir(parents=True, exist_ok=True)
    args.report.with_name(args.report.name + ".json").write_text(json.dumps(report, indent=2))
    args.report.with_name(args.report.name + ".md").write_text(table)
    print(table)


def _check(args: argparse.Namespace) -> None:
    for policy in args.policies:
        if not shards_of(policy):
            raise SystemExit(f"{policy} has no *.safetensors")
    for vector in args.weights:
        if len(vector) != len(args.policies):
            raise SystemExit(f"{len(args.policies)} policies, but --weights {vector}")
    if args.limit_memory and args.warm:
        raise SystemExit("--warm and --limit-memory exclude each other")


def _run_once(
    contestant: Contestant,
    args: argparse.Namespace,
    scratch: Path,
    limit: MemoryLimit | None,
    expected: int,
) -> None:
    out, log = scratch / "out", scratch / "log"
    out.mkdir()
    log.unlink(missing_ok=True)
    evict(args.policies, args.warm)
    os.sync()
    usage = Usage()
    with limit.group() if limit else contextlib.nullcontext() as enter:
        for command in contestant.commands(out):
            if status := measure(command, log, enter, usage):
                said = log.read_text(errors="replace")
                print(said[-2000:], file=sys.stderr)
                last = (said.strip().splitlines() or ["nothing said"])[-1]
                contestant.failure = f"exit status {status}: {last}"
                break
    if not contestant.failure:
        started = time.perf_counter()
        for path in out.rglob("*"):
            fsync(path)
        usage.flush_s = time.perf_counter() - started
        if contestant.name != "project-discard" and abs(weights_size(out) / expected - 1) > 0.01:
            contestant.failure = (
                f"wrote {weights_size(out):,} bytes of weights instead of {expected:,}"
            )
        contestant.rounds.append(usage)
    shutil.rmtree(out)


def _say(number: int, contestant: Contestant) -> None:
    said = contestant.failure
    if not said:
        usage = contestant.rounds[-1]
        said = f"{usage.wall_s:.2f} s, on disk {usage.on_disk_s:.2f} s, CPU {usage.cpu_s:.2f} s"
    print(f"round {number + 1} {contestant.name}: {said}", file=sys.stderr, flush=True)


def median(contestant: Contestant) -> Usage | None:
    """The median of each quantity over the rounds; nothing of a contestant that failed."""
    if contestant.failure or not contestant.rounds:
        return None
    return Usage(
        **{
            quantity.name: statistics.median(getattr(u, quantity.name) for u in contestant.rounds)
            for quantity in fields(Usage)
        }
    )


def _record(contestant: Contestant) -> dict[str, object]:
    middle = median(contestant)
    return {
        "name": contestant.name,
        "failure": contestant.failure,
        "median": middle and asdict(middle),
        "rounds": [asdict(usage) for usage in contestant.rounds],
    }


def markdown(running: list[Contestant], facts: dict[str, object], notes: list[str]) -> str:
    medians = {contestant.name: median(contestant) for contestant in running}
    lines = [
        f"{facts['what']}; median of {facts['rounds']} rounds; {facts['date']}; {facts['machine']}",
        "",
        "| contestant | wall s | on disk s | / floor | / project | CPU s | peak RSS MB "
        "| peak anon MB | GB read | GB written |",
        "| --- |" + " ---: |" * 9,
    ]
    for contestant in running:
        usage = medians[contestant.name]
        if usage is None:
            lines.append(f"| {contestant.name} | failed: {contestant.failure} |" + " |" * 8)
            continue
        ratios = [
            f"{usage.on_disk_s / other.on_disk_s:.2f}" if (other := medians.get(name)) else ""
            for name in ("floor", "project")
        ]
        cells = [
            f"{usage.wall_s:.2f}",
            f"{usage.on_disk_s:.2f}",
            *ratios,
            f"{usage.cpu_s:.2f}",
            f"{usage.rss_bytes / 1e6:.0f}",
            f"{usage.anon_bytes / 1e6:.0f}",
            f"{usage.read_bytes / 1e9:.2f}",
            f"{usage.written_bytes / 1e9:.2f}",
        ]
        lines.append(f"| {contestant.name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *notes, ""])


# What was measured, and where.


def _facts(args: argparse.Namespace, limited: bool, notes: list[str]) -> dict[str, object]:
    size = weights_size(args.policies[0])
    cache = "inputs cached" if args.warm else "inputs not cached"
    if limited:
        cache += f", memory and page cache limited to {args.limit_memory / 1e9:g} GB"
    reads, writes = len(args.policies) * size / 1e9, len(args.weights) * size / 1e9
    machine = hardware(args.work)
    return {
        "what": f"{len(args.weights)} soup(s) of {len(args.policies)} policies of {size / 1e9:.2f} "
        f"GB (to read {reads:.2f} GB, to write {writes:.2f} GB), {cache}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB, {machine['disk']}",
        "rounds": args.rounds,
        "weights": args.weights,
        "cache": "warm" if args.warm else "cold",
        "memory_limit": args.limit_memory if limited else None,
        "shards": [path.stat().st_size for path in shards_of(args.policies[0])],
        "notes": notes,
        "command": ["python", *sys.argv],
        "hardware": machine,
        "versions": _versions(args),
        "git": git_state(),
    }


def _versions(args: argparse.Namespace) -> dict[str, object]:
    names = ["vcsoup_dist", "mergekit", "torch", "transformers", "safetensors", "numpy", "pydantic"]
    ask = (
        "import json, sys, importlib.metadata as m\nv = {'python': sys.version.split()[0]}\n"
        "for n in sys.argv[1:]:\n"
        "    try: v[n] = m.version(n)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(v))"
    )
    versions: dict[str, object] = {}
    for name, folder in (("project", args.vcsoup.parent), ("mergekit", args.mergekit)):
        with contextlib.suppress(OSError, ValueError, TypeError):
            command = [str(folder / "python"), "-c", ask, *names]
            versions[name] = json.loads(subprocess.run(command, capture_output=True).stdout)
    return versions


# The command line.


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([\d.]+)\s*([kMGT]?)(i?)B?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 3.6GB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kMGT".index(match[2] or " "))


def _vector(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    commands = parser.add_subparsers(dest="command", required=True)

    make = commands.add_parser("make", help="write checkpoints to measure with")
    make.add_argument("folder", type=Path, help="P0, P1, ... are made in it")
    size = make.add_mutually_exclusive_group()
    size.add_argument("--size", choices=merge_shapes.SHAPES, default="1.9GB")
    size.add_argument(
        "--sparse-70b",
        action="store_true",
        help="the layout of Llama-3.1-70B, 141 GB, in sparse files that take no room",
    )
    make.add_argument("--policies", type=int, default=2, help="how many (default 2)")
    for name in ("layers", "hidden", "intermediate", "vocabulary", "heads", "kv-heads"):
        make.add_argument(f"--{name}", type=int, help="in place of the size's own")
    make.add_argument("--shard-bytes", type=_bytes, help="largest shard, such as 5GB")

    run = commands.add_parser(
        "run", help="measure merges", epilog=COLUMNS, formatter_class=as_written
    )
    run.add_argument("policies", type=Path, nargs="+")
    run.add_argument(
        "--weights", type=_vector, action="append", required=True, help="one soup; repeatable"
    )
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument(
        "--contestants",
        type=lambda names: names.split(","),
        help="of floor,floor-buffered,cp,project,mergekit,mergekit-multi (all of these by default)"
        " and project-discard, which reads and sums and writes nothing",
    )
    run.add_argument(
        "--vcsoup", type=Path, default=Path(sys.executable).with_name("vcsoup"), help="the program"
    )
    run.add_argument("--project-options", default="", help="more options for vcsoup merge")
    run.add_argument("--mergekit", type=Path, help="bin folder of an environment with mergekit")
    run.add_argument(
        "--mergekit-shard-size", type=_bytes, help="of its outputs; default the largest input shard"
    )
    run.add_argument("--threads", type=int, default=4, help="of the floor (default 4)")
    run.add_argument("--limit-memory", type=_bytes, help="memory with page cache, such as 3.6GB")
    run.add_argument("--warm", action="store_true", help="inputs in the page cache")
    run.add_argument("--work", type=Path, help="for outputs; default beside the first policy")
    run.add_argument("--report", type=Path, default=Path("bench-merge"), help="without suffix")

    return parser


def main() -> None:
    args = _parser().parse_args()
    if args.command == "run":
        bench(args)
    else:
        shape = merge_shapes.LLAMA_70B if args.sparse_70b else merge_shapes.SHAPES[args.size]
        changes = {f.name: getattr(args, f.name) for f in fields(shape)}
        shape = merge_shapes.resized(shape, **changes)
        merge_shapes.write_policies(args.folder, shape, args.policies, args.sparse_70b)


if __name__ == "__main__":
    main()
