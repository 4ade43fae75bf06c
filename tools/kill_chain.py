"""Kill a whole run at random moments, all its processes at once, and see how it ends.

    python tools/kill_chain.py --dir /tmp/kills                  the demo's world and recipe
    python tools/kill_chain.py --dir /tmp/kills --recipe my.yaml --kills 20 --json kills.json
    python tools/kill_chain.py --dir /shared/kills --slurm       by `vcsoup submit`

One run is left alone (DIR/calm). The other (DIR/disturbed) is started, killed, started again by
the same command, and so on; the last start goes to the end. The moments of the kills are drawn
uniformly from the time of the first run; the second reaches such a moment with the same products,
and so many seconds after the last of them. Every second kill takes the command alone, as the kernel
does that runs out of memory; the others take all processes of the run at once, Ray's and the ranks
among them. The machine itself lives on: what was written but not synced is not lost, as it would
be where the power fails. With --slurm it is always all of them, with the slurmstepd of every job;
all nodes must be on this machine (tools/slurm_cluster.sh). Where the run ends before the moment of
a kill, it says so and makes no more of them.

After each kill all processes must be gone, and what is finished must have the bytes of the run left
alone. So must all files in the end, but `work`, locks, logs and what knows times of files
(hashes.json) or numbers of jobs (jobs.json). Exit code 1 where anything is left or differs, or
where the run does not go on.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from killable_runs import LocalRun, SlurmRun, check, files_of, finished, processes_of, send, short
from measuring import git_state, hardware

from vcsoup_dist.demo.world import make_world

PATIENCE = 60.0  # seconds for the processes of a killed run to end
LATE = 10.0
LIMIT = 3600.0  # seconds for a run to get on
DEMO = Path(__file__).parents[1] / "vcsoup_dist" / "demo" / "recipe.yaml"


@dataclass(frozen=True)
class Kill:
    """One kill, and what was seen of it."""

    of: str
    """`all` processes, or the `command` alone."""
    seconds: float
    """From the start of the command."""
    making: Sequence[str]
    """Products whose lock was held."""
    ran: Sequence[str]
    """Names of the processes."""
    gone_after: float
    """Seconds from the kill until no process was left."""
    late: Sequence[str]
    """Names of the processes that took more than LATE of them."""
    left: Sequence[str]
    """Processes that did not end."""
    finished: int
    """Products that were there."""
    wrong: Sequence[str]
    """Files of these that are not those of the run left alone."""


def different(root: Path, calm: Path, products: Iterable[str] = ("",)) -> list[str]:
    """What differs from the run left alone, in all files or in those of some products."""
    ours, theirs = files_of(root), files_of(calm)
    folders = tuple(f"{each}/" if each else "" for each in products)
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        if not name.startswith(folders):
            continue
        if name not in ours or name not in theirs:
            found.append(f"{name}: {'not made' if name in theirs else 'too much'}")
        elif not filecmp.cmp(ours[name], theirs[name], shallow=False):
            found.append(f"{name}: other bytes")
    return found


def wait(run: LocalRun, enough: Callable[[], object]) -> int | None:
    """Exit code of the run, or None once it is enough."""
    deadline = time.monotonic() + LIMIT
    while (code := run.ended()) is None and not enough():
        if time.monotonic() > deadline:
            run.give_up()
            sys.exit(f"{run.root} hangs; see {run.log} and {run.root / 'logs'}")
        time.sleep(run.poll)
    return code


def finish(run: LocalRun) -> float:
    """Start the run and let it go to its end; returns the seconds it took."""
    began = time.monotonic()
    run.start()
    check(run, wait(run, lambda: False))
    return time.monotonic() - began


def kill_once(
    run: LocalRun, after: Sequence[str], seconds: float, everything: bool, calm: Path
) -> Kill | None:
    """Start the run, kill it so long after these products are there, and look.

    None where it ended before.
    """
    began = time.monotonic()
    run.start()
    code = wait(run, lambda: all((run.root / each / "product.json").exists() for each in after))
    reached = time.monotonic()
    if code is None:  # of Slurm's jobs none may run at the moment
        code = wait(run, lambda: time.monotonic() > reached + seconds and processes_of(run.mark))
    if code is not None:
        check(run, code)
        return None
    lived = time.monotonic() - began
    making, ran = run.kill(everything)
    killed = time.monotonic()
    late: set[str] = set()
    while (left := processes_of(run.mark)) and time.monotonic() < killed + PATIENCE:
        if time.monotonic() > killed + LATE:
            late |= {short(each.command) for each in left.values()}
        time.sleep(run.poll)
    gone_after = time.monotonic() - killed
    for pid in left:  # it must not disturb what comes
        send(pid, signal.SIGKILL)
    made = sorted(finished(run.root))
    return Kill(
        of="all" if everything else "command", seconds=round(lived, 1), making=making,
        ran=sorted(short(each.command) for each in ran), gone_after=round(gone_after, 1),
        late=sorted(late),
        left=sorted(f"{pid} {each.command}" for pid, each in left.items()),
        finished=len(made), wrong=different(run.root, calm, made),
    )  # fmt: skip


def prove(calm: LocalRun, disturbed: LocalRun, kills: int, seed: int) -> dict[str, Any]:
    """Both runs and all kills; says what it sees on the way."""
    whole = finish(calm)
    products = finished(calm.root)
    print(f"left alone: {whole:.0f} s, {len(products)} products", flush=True)
    start = (calm.root / "recipe.yaml").stat().st_mtime
    times = {name: path.stat().st_mtime - start for name, path in products.items()}
    draw, seen = random.Random(seed), list[Kill]()
    for number, moment in enumerate(sorted(draw.uniform(0, whole) for _ in range(kills)), 1):
        after = [name for name, time_ in times.items() if time_ <= moment]
        seconds = moment - max((times[name] for name in after), default=0.0)
        everything = number % 2 == 1 or isinstance(disturbed, SlurmRun)
        kill = kill_once(disturbed, after, seconds, everything, calm.root)
        if kill is None:
            print(f"it ended before kill {number}", flush=True)
            break
        seen.append(kill)
        print(f"kill {number} of {told(kill)}", flush=True)
    last = finish(disturbed)
    left = [each.command for each in processes_of(disturbed.mark).values()]
    return {
        "seconds": {"left alone": round(whole, 1), "last start": round(last, 1)},
        "products": len(products),
        "files": len(files_of(calm.root)),
        "bytes": sum(path.stat().st_size for path in files_of(calm.root).values()),
        "kills": [asdict(kill) for kill in seen],
        "left": [*left, *(each for kill in seen for each in kill.left)],
        "different": different(disturbed.root, calm.root)
        + [f"after kill {i}: {each}" for i, kill in enumerate(seen, 1) for each in kill.wrong],
    }  # fmt: skip


def told(kill: Kill) -> str:
    """A line for one kill."""
    counts = {name: kill.ran.count(name) for name in dict.fromkeys(kill.ran)}
    ran = ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items())
    making = ", ".join(kill.making[:2]) or "nothing"
    if len(kill.making) > 2:
        making += f" and {len(kill.making) - 2} more"
    late = f" ({', '.join(kill.late)})" if kill.late else ""
    return (
        f"{kill.of}, {kill.seconds:.1f} s after the start: {kill.finished} products finished, "
        f"making {making}; ran: {ran}; gone after {kill.gone_after:.1f} s{late}; "
        f"left: {', '.join(kill.left) or 'none'}; wrong: {', '.join(kill.wrong) or 'none'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path("runs/kills"), help="for all of it")
    parser.add_argument("--recipe", type=Path, help="instead of the demo's")
    parser.add_argument("--slurm", action="store_true", help="by `vcsoup submit`")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    folder = asked.dir.resolve()
    for name in ("calm", "disturbed"):
        if (folder / name).exists():
            parser.error(f"{folder / name} is there already; remove it, or name another --dir")
    folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if asked.recipe is None:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # as `vcsoup demo` does
        make_world(folder / "world", print)
        asked.recipe = shutil.copy(DEMO, folder)
    recipe, kind = Path(asked.recipe).resolve(), SlurmRun if asked.slurm else LocalRun
    runs = [kind(recipe, folder / name, environment) for name in ("calm", "disturbed")]
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": git_state(),
        "hardware": hardware(folder),
        "settings": {
            "by": "vcsoup submit" if asked.slurm else "vcsoup run",
            "recipe": recipe.name, "kills": asked.kills, "seed": asked.seed,
        },
        **prove(*runs, asked.kills, asked.seed),
    }  # fmt: skip
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"compared: {result['files']} files, {result['bytes'] / 1e6:.1f} MB")
    for key in ("left", "different"):
        print(f"{key}:", "\n  ".join(["", *result[key]]) if result[key] else "none")
    sys.exit(1 if result["left"] or result["different"] else 0)


if __name__ == "__main__":
    main()
