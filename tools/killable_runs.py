"""Runs that can be killed: how they are started, which processes they have, what they have made."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.launch.slurm_queue import queued_jobs
from vcsoup_dist.processes import process_name
from vcsoup_dist.slurm_jobs.submissions import mark_of

MARK = "KILL_CHAIN_RUN"  # environment variable that all processes of a run inherit
NOT_COMPARED = ("work", "locks", "logs", "hashes.json", "jobs.json")


@dataclass(frozen=True)
class Process:
    state: str
    """As in /proc: R, S, D, T (stopped), Z (zombie)."""
    parent: int
    command: str


def processes_of(mark: str) -> dict[int, Process]:
    """The living processes of a run, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:  # it ended meanwhile, or is another user's
                continue
            if state not in "ZX":
                command = words.decode(errors="replace").strip()
                found[int(entry.name)] = Process(state, int(parent), command)
    return found


def stop_all(mark: str) -> dict[int, Process]:
    """Stop all processes of a run, so that none starts another any more."""
    while True:
        found = processes_of(mark)
        # One that has forked by vfork is stopped with its child, and shown as D.
        held = {each.parent for each in found.values() if each.state == "T"}
        still = {pid for pid in held if pid in found and found[pid].state == "D"}
        moving = [pid for pid, each in found.items() if each.state != "T" and pid not in still]
        if not moving:
            return found
        for pid in moving:
            send(pid, signal.SIGSTOP)


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def short(command: str) -> str:
    """A process's name for people: of Python, the script or module."""
    words = command.split()
    if "-m" in words:
        return words[words.index("-m") + 1]
    names = [Path(word).name for word in words if not word.startswith("-")]
    return names[1] if names[0].startswith("python") and len(names) > 1 else names[0]


def being_made(root: Path) -> list[str]:
    """Products whose lock a process of this machine holds; takes none itself."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    held = {words[5].split(":")[2] for words in lines if words[1] != "->"}  # that one waits
    folders = [path.parent.relative_to(root / "work") for path in root.glob("work/**/fingerprint")]
    names = {str(folder).replace("/", "."): str(folder) for folder in folders}
    locks = [each for each in root.glob("locks/*.writer") if str(each.stat().st_ino) in held]
    return sorted(names.get(each.stem, each.stem) for each in locks)


def files_of(root: Path) -> dict[str, Path]:
    """The files of a run directory that must come out the same, by name."""
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return {str(name): root / name for name in found if name.parts[0] not in NOT_COMPARED}


def finished(root: Path) -> dict[str, Path]:
    """Records of the products that are there, by the product's name."""
    files = files_of(root).items()
    return {str(Path(name).parent): path for name, path in files if path.name == "product.json"}


class LocalRun:
    """`vcsoup run` on this machine."""

    poll = 0.05  # seconds

    def __init__(self, recipe: Path, root: Path, environment: dict[str, str]) -> None:
        self.recipe, self.root, self.mark = recipe, root, str(uuid.uuid4())
        self.environment = environment | {MARK: self.mark}
        self.log = root.with_suffix(".log")

    def start(self) -> None:
        self.process = self._vcsoup("run")

    def ended(self) -> int | None:
        """Exit code, or None while it runs."""
        return self.process.poll()

    def kill(self, everything: bool) -> tuple[list[str], list[Process]]:
        """Kill all of it or the command alone; returns what was being made, and what ran."""
        running = stop_all(self.mark) if everything else processes_of(self.mark)
        making = being_made(self.root)
        for pid in running if everything else [self.process.pid]:
            send(pid, signal.SIGKILL)
        self.process.wait()
        return making, list(running.values())

    def give_up(self) -> None:
        """End a run that hangs."""
        self.kill(everything=True)

    def _vcsoup(self, command: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "vcsoup_dist.cli", command, str(self.recipe)]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*words, "--run-dir", str(self.root)],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip


class SlurmRun(LocalRun):
    """`vcsoup submit`, and the jobs of it."""

    poll = 0.5

    def start(self) -> None:
        check(self, self._vcsoup("submit").wait())

    def ended(self) -> int | None:
        """0 where the report is there and 1 where not, once no job is left; None before."""
        jobs = queued_jobs(mark_of(self.root))
        for job in jobs:
            if job.reason == "BeginTime":  # requeued; Slurm would let two minutes pass
                subprocess.run(["scontrol", "update", f"JobId={job.id}", "StartTime=now"])
        return None if jobs else int("report" not in finished(self.root))

    def kill(self, everything: bool) -> tuple[list[str], list[Process]]:
        running = stop_all(self.mark)
        making = being_made(self.root)
        parents = {each.parent for each in running.values()}
        steps = [pid for pid in parents if process_name(pid) == "slurmstepd"]
        for pid in [*steps, *running]:
            send(pid, signal.SIGKILL)
        while any(not job.waits for job in queued_jobs(mark_of(self.root))):
            # As when a node comes back: it says what runs there, and Slurm misses these jobs, but
            # none that it started less than BatchStartTimeout ago.
            subprocess.run(["scontrol", "reconfigure"], check=True)
            time.sleep(2)
        time.sleep(2)  # within a second of the requeue the nodes refuse the job
        return making, list(running.values())

    def give_up(self) -> None:
        self._vcsoup("cancel").wait()  # also the jobs that wait
        super().give_up()


def check(run: LocalRun, code: int | None) -> None:
    """End with the run's last words where it failed."""
    if code:
        said = run.log.read_text()[-2000:]
        sys.exit(f"{run.root} ended with exit code {code}; see {run.root / 'logs'}:\n{said}")
