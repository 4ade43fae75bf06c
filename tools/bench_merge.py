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
import mmap
import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import merge_shapes

PIECE = 8 << 20
SAMPLE_SECONDS = 0.02
CORES = len(os.sched_getaffinity(0))
MERGEKIT_ADVICE = (
    "mergekit is left out; to measure it: python3.11 -m venv DIR; "
    "DIR/bin/pip install mergekit==0.1.5 torch==2.13.0; then --mergekit DIR/bin"
)
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


# The floor: the reads, writes and fsyncs of a merge without its arithmetic.


class _CopiedFile:
    """One file of every input, and the files of the same size and name in every output."""

    def __init__(self, inputs: list[Path], outputs: list[Path], direct: bool) -> None:
        flags = os.O_DIRECT if direct else 0
        self.size = inputs[0].stat().st_size
        if any(path.stat().st_size != self.size for path in inputs):
            raise SystemExit(f"the floor needs inputs with equal shards; {inputs[0].name} differs")
        self.direct = direct
        self.inputs = [os.open(path, os.O_RDONLY | flags) for path in inputs]
        self.outputs = [os.open(p, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags) for p in outputs]
        for fd in self.outputs:
            os.posix_fallocate(fd, 0, self.size)
        if not direct:
            for fd in self.inputs:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self.left = -(-self.size // PIECE)
        self.lock = threading.Lock()

    def copy(self, offset: int, buffers: list[mmap.mmap]) -> None:
        length = min(PIECE, self.size - offset)
        asked = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE if self.direct else length
        for fd, buffer in zip(self.inputs, buffers, strict=True):
            got = os.preadv(fd, [memoryview(buffer)[:asked]], offset)
            if got != length:
                raise SystemExit(f"read {got} bytes instead of {length}")
            if not self.direct:
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
        for number, fd in enumerate(self.outputs):
            data = memoryview(buffers[number % len(buffers)])[:asked]
            if os.pwritev(fd, [data], offset) != asked:
                raise SystemExit("short write")
        with self.lock:
            self.left -= 1
            last = not self.left
        if last:
            self._finish()

    def _finish(self) -> None:
        for fd in self.outputs:
            os.ftruncate(fd, self.size)
            os.fsync(fd)
            if not self.direct:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for fd in (*self.inputs, *self.outputs):
            os.close(fd)


def run_floor(policies: list[Path], outputs: list[Path], threads: int, direct: bool) -> None:
    names = [path.name for path in _shards(policies[0])]
    for output in outputs:
        output.mkdir(parents=True)
    files = (
        _CopiedFile([p / name for p in policies], [o / name for o in outputs], direct)
        for name in names
    )
    pieces = ((file, offset) for file in files for offset in range(0, file.size, PIECE))
    lock = threading.Lock()

    def work() -> None:
        buffers = [mmap.mmap(-1, PIECE) for _ in policies]
        while True:
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            piece[0].copy(piece[1], buffers)

    with ThreadPoolExecutor(threads) as pool:
        for worker in [pool.submit(work) for _ in range(threads)]:
            worker.result()
    for output in outputs:
        _fsync(output)


# Measuring one run.


@dataclass
class Usage:
    """What one run, of one or several commands in a row, took."""

    wall_s: float = 0.0
    flush_s: float = 0.0
    user_s: float = 0.0
    system_s: float = 0.0
    rss_bytes: int = 0
    anon_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    others_cpu_s: float = 0.0
    """CPU time the rest of the machine used meanwhile: how far to trust the wall time."""

    @property
    def on_disk_s(self) -> float:
        return self.wall_s + self.flush_s

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s


class MemorySampler(threading.Thread):
    """Highest memory of a process tree: all of it, and what is not pages of files."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.rss = self.anon = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(SAMPLE_SECONDS):
            rss = anon = 0
            for pid in _tree(self.pid):
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{pid}/status").read_bytes()
                    sizes = {k: 1024 * int(v) for k, v in re.findall(rb"(Rss\w+):\s*(\d+)", status)}
                    rss += sum(sizes.values())
                    anon += sizes.get(b"RssAnon", 0) + sizes.get(b"RssShmem", 0)
            self.rss, self.anon = max(self.rss, rss), max(self.anon, anon)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from _tree(int(child))


def measure(command: list[str], log: Path, enter: Callable[[], None] | None, usage: Usage) -> int:
    """Run a command, add what it took to `usage`, and return its exit status."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    before, started = _busy_seconds(), time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            preexec_fn=enter,
            start_new_session=True,
        )
    sampler = MemorySampler(process.pid)
    sampler.start()
    try:
        _, status, spent = os.wait4(process.pid, 0)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        sampler.stopped.set()
        sampler.join()
    usage.wall_s += time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    usage.user_s += spent.ru_utime
    usage.system_s += spent.ru_stime
    usage.rss_bytes = max(usage.rss_bytes, sampler.rss)
    usage.anon_bytes = max(usage.anon_bytes, sampler.anon)
    usage.read_bytes += spent.ru_inblock * 512
    usage.written_bytes += spent.ru_oublock * 512
    usage.others_cpu_s += _busy_seconds() - before - spent.ru_utime - spent.ru_stime
    return process.returncode


def _busy_seconds() -> float:
    times = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(times) - times[3] - times[4]) / os.sysconf("SC_CLK_TCK")  # less idle and iowait


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def evict(folders: list[Path], warm: bool) -> None:
    """Put the files out of the page cache or, with `warm`, into it."""
    for path in (p for folder in folders for p in folder.rglob("*") if p.is_file()):
        fd = os.open(path, os.O_RDONLY)
        if warm:
            while os.read(fd, PIECE):
                pass
        else:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


class MemoryLimit:
    """A control group that confines a process tree's memory and page cache together.

    One is made for each run, so that no cached pages of an earlier run count. It lies below the
    group this process is in (cgroup v1) or beside it (v2, where groups with processes cannot have
    limited groups below them).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def _settings(self) -> tuple[Path, dict[str, int]]:
        parent, version = self._place()
        if version == 1:
            return parent, {"memory.limit_in_bytes": self.limit}
        settings = {"memory.max": self.limit}
        if Path("/proc/swaps").read_text().count("\n") > 1:
            settings["memory.swap.max"] = 0
        return parent, settings

    @staticmethod
    def _place() -> tuple[Path, int]:
        own = {}
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own.update({controller: path for controller in controllers.split(",")})
        mounts = {}
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            head, tail = (part.split() for part in line.split(" - "))
            if tail[0] == "cgroup2":
                mounts[""] = (head[3], head[4])
            elif tail[0] == "cgroup" and "memory" in tail[2].split(","):
                mounts["memory"] = (head[3], head[4])
        for controller in own.keys() & mounts.keys():
            root, mount = mounts[controller]
            folder = Path(mount, own[controller].removeprefix(root).lstrip("/"))
            if controller == "memory":
                return folder, 1
            for candidate in (folder, *folder.parents):
                control = candidate / "cgroup.subtree_control"
                if control.exists() and "memory" in control.read_text().split():
                    return candidate, 2
        raise OSError("no control group with a memory controller is mounted")

    def why_not(self) -> str | None:
        """Why no such group can be made here, or None when one can."""
        try:
            with self.group() as enter:
                subprocess.run(["true"], preexec_fn=enter, check=True)
                return None
        except (OSError, subprocess.SubprocessError) as error:
            return f"{error}; run as root, or all of it in systemd-run --scope -p MemoryMax=..."

    @contextlib.contextmanager
    def group(self) -> Iterator[Callable[[], None]]:
        """Make the group; yields what a child must call to enter it."""
        parent, settings = self._settings()
        folder = parent / f"bench-merge-{os.getpid()}"
        folder.mkdir()
        try:
            for name, value in settings.items():
                (folder / name).write_text(str(value))
            with (folder / "cgroup.procs").open("wb", buffering=0) as processes:

                def enter() -> None:
                    processes.write(b"0")

                yield enter
        finally:
            for _ in range(50):  # a killed process may take a moment to leave
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                print(f"could not remove {folder}", file=sys.stderr)


# The contestants.


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
    shards = _shards(policies[0])
    shard_size = args.mergekit_shard_size or max(path.stat().st_size for path in shards)
    mergekit = ["--out-shard-size", str(shard_size), "-j", str(CORES), "--quiet"]

    def floor(out: Path, *options: str) -> list[list[str]]:
        outputs = [str(out / soup) for soup in soups]
        call = [sys.executable, __file__, "floor", *inputs, "--threads", str(args.threads)]
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
        "mergekit": mergekit_linear,
        "mergekit-multi": mergekit_multi,
    }
    wanted = args.contestants or list(makers)
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


def _shards(policy: Path) -> list[Path]:
    return sorted(policy.glob("*.safetensors"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


# A benchmark: rounds, then the report.


def bench(args: argparse.Namespace) -> None:
    _check(args)
    # mergekit looks a relative path up on the hub.
    args.policies = [policy.resolve() for policy in args.policies]
    args.work = args.work or args.policies[0].parent
    expected = len(args.weights) * _size(args.policies[0])
    if shutil.disk_usage(args.work).free < 1.05 * expected:
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
        if not _shards(policy):
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
            _fsync(path)
        usage.flush_s = time.perf_counter() - started
        if abs(_size(out) / expected - 1) > 0.01:
            contestant.failure = f"wrote {_size(out):,} bytes of weights instead of {expected:,}"
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
    size = _size(args.policies[0])
    cache = "inputs cached" if args.warm else "inputs not cached"
    if limited:
        cache += f", memory and page cache limited to {args.limit_memory / 1e9:g} GB"
    reads, writes = len(args.policies) * size / 1e9, len(args.weights) * size / 1e9
    hardware = _hardware(args.work)
    return {
        "what": f"{len(args.weights)} soup(s) of {len(args.policies)} policies of {size / 1e9:.2f} "
        f"GB (to read {reads:.2f} GB, to write {writes:.2f} GB), {cache}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['memory_bytes'] / 1e9:.0f} GB, {hardware['disk']}",
        "rounds": args.rounds,
        "weights": args.weights,
        "cache": "warm" if args.warm else "cold",
        "memory_limit": args.limit_memory if limited else None,
        "shards": [path.stat().st_size for path in _shards(args.policies[0])],
        "notes": notes,
        "command": [sys.executable, *sys.argv],
        "hardware": hardware,
        "versions": _versions(args),
        "git": _git(),
    }


def _hardware(folder: Path) -> dict[str, Any]:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    number = os.stat(folder).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    mounts = (line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines())
    node = f"{os.major(number)}:{os.minor(number)}"
    systems = [tail.split()[0] for head, tail in mounts if head.split()[2] == node]
    queue = next((p / "queue" for p in (device, device.parent) if (p / "queue").is_dir()), None)
    ahead = f", read-ahead {(queue / 'read_ahead_kb').read_text().strip()} KB" if queue else ""
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": CORES,
        "memory_bytes": int(memory[1]) * 1024 if memory else 0,
        "disk": f"{systems[0] if systems else 'file system'} on {device.name}{ahead}",
        "kernel": platform.release(),
        "load": os.getloadavg(),
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


def _git() -> dict[str, object] | None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "changed_files": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None


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
        help="of floor,floor-buffered,cp,project,mergekit,mergekit-multi; default all",
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

    floor = commands.add_parser("floor", help="one run of the floor")
    floor.add_argument("policies", type=Path, nargs="+")
    floor.add_argument("--outputs", type=Path, nargs="+", required=True)
    floor.add_argument("--threads", type=int, default=4)
    floor.add_argument("--buffered", action="store_true", help="through the page cache")
    return parser


def main() -> None:
    args = _parser().parse_args()
    if args.command == "floor":
        run_floor(args.policies, args.outputs, args.threads, not args.buffered)
    elif args.command == "run":
        bench(args)
    else:
        shape = merge_shapes.LLAMA_70B if args.sparse_70b else merge_shapes.SHAPES[args.size]
        changes = {f.name: getattr(args, f.name) for f in fields(shape)}
        shape = merge_shapes.resized(shape, **changes)
        merge_shapes.write_policies(args.folder, shape, args.policies, args.sparse_70b)


if __name__ == "__main__":
    main()
