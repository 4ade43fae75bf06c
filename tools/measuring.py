"""What commands take, in time, memory and bytes, and what machine they took it on.

Shared by the benchmarks of this folder.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIECE = 8 << 20
SAMPLE_SECONDS = 0.02
CORES = len(os.sched_getaffinity(0))


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


def fsync(path: Path) -> None:
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


def hardware(folder: Path) -> dict[str, Any]:
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


def git_state() -> dict[str, object] | None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "changed_files": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None
