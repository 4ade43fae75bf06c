"""Ctrl-C, a terminal that hangs up and `nohup`, as `vcsoup train` meets them on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import vcsoup
from slurm_world import Jobs
from training_world import processes_with, wait_for

from vcsoup_dist.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

pytestmark = [pytest.mark.ranks, pytest.mark.models]

POLICY = "policies/vc_soup/long/seed-0"


class Terminal:
    """`vcsoup train` as the foreground of a terminal of its own."""

    def __init__(self, folder: Path, ranks: int = 1, ignored: tuple[int, ...] = ()) -> None:
        self.folder, self.metrics = folder, folder / "run/logs" / POLICY / "metrics.jsonl"
        self.ranks = ranks
        self.job = folder / "run/work" / POLICY / "scratch/job.json"
        self.before = self.steps()
        self.log = folder / "said"
        command = [str(Path(sys.executable).parent / "vcsoup"), "train", "long", "recipe.yaml"]
        child, self.handle = pty.fork()
        if child == 0:
            os.chdir(folder)
            for each in (signal.SIGINT, signal.SIGHUP):  # whatever the tests were started with
                signal.signal(each, signal.SIG_IGN if each in ignored else signal.SIG_DFL)
            os.execv(command[0], [*command, "-d", "run", "--set", f"launch.ranks={ranks}"])
        self.pid = child

    def steps(self) -> int:
        return self.metrics.read_bytes().count(b"\n") if self.metrics.exists() else 0

    def train_on(self) -> None:
        """Until it has taken some more steps."""
        job = str(self.job.resolve())
        wait_for(lambda: self.read() and len(processes_with(job)) == self.ranks)
        first = self.steps()
        wait_for(lambda: self.read() and self.steps() > first + 12)

    def read(self) -> bool:
        os.set_blocking(self.handle, False)
        try:
            while said := os.read(self.handle, 1 << 16):
                with open(self.log, "ab") as file:
                    file.write(said)
        except OSError:  # nothing more now, or at all
            pass
        return True

    def end(self) -> int:
        """The exit code, or the signal as a negative number."""
        deadline = time.monotonic() + 120
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            assert time.monotonic() < deadline
            self.read()
            time.sleep(0.05)
        self.read()
        wait_for(lambda: not processes_with(str(self.job.resolve())))
        return os.waitstatus_to_exitcode(ended[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    jobs = Jobs(tmp_path_factory.mktemp("interrupts"))
    recipe = jobs.folder / "recipe.yaml"
    text = recipe.read_text().replace("steps: 50", "steps: 5000")
    recipe.write_text(text.replace("checkpoint_every: 10", "checkpoint_every: 4000"))
    shutil.move(jobs.folder / "filtered", jobs.folder / "run")
    # Names of Python's own modules; what is run of these leaves a file.
    for name in ("profile", "queue", "statistics", "calendar"):
        (jobs.folder / f"{name}.py").write_text(f"open({str(jobs.folder / 'ran')!r}, 'a')\n")
    vcsoup("reference", "recipe.yaml", "-d", "run", folder=jobs.folder)
    yield jobs.folder
    for each in processes_with(str((jobs.folder / "run").resolve())):  # of a test that failed
        os.kill(each, signal.SIGKILL)


def saved(folder: Path) -> list[str]:
    return sorted(each.parent.name for each in folder.glob(f"run/work/{POLICY}/scratch/*/COMPLETE"))


def outcome(folder: Path) -> str | None:
    newest = max((folder / "run/logs/history").glob("*-train-*.json"))
    return json.loads(newest.read_text())["outcome"]


def test_ctrl_c_saves_and_says_what_the_next_one_does(folder):
    terminal = Terminal(folder, ranks=2)
    terminal.train_on()
    os.write(terminal.handle, b"\x03")  # as the key does: to every process of the foreground
    assert terminal.end() == EXIT_INTERRUPTED
    assert len(saved(folder)) == 1 and outcome(folder) == "stopped"
    said = terminal.log.read_text()
    assert "Ctrl-C again ends it at once" in said and "saved after step" in said
    assert "Traceback" not in said
    assert not (folder / "ran").exists()


def test_a_hang_up_saves_also_where_a_script_in_the_background_ignores_ctrl_c(folder):
    before = saved(folder)
    terminal = Terminal(folder, ignored=(signal.SIGINT,))
    terminal.train_on()
    os.write(terminal.handle, b"\x03")
    terminal.train_on()
    os.close(terminal.handle)  # the kernel sends SIGHUP, and writing to the terminal fails
    terminal.handle = os.open(os.devnull, os.O_RDONLY)
    assert terminal.end() == EXIT_PREEMPTED
    assert len(saved(folder)) == 1 and saved(folder) > before and outcome(folder) == "stopped"


def test_under_nohup_a_hang_up_is_nothing_and_the_second_ctrl_c_ends_at_once(folder):
    before = saved(folder)
    terminal = Terminal(folder, ignored=(signal.SIGHUP,))
    terminal.train_on()
    os.killpg(terminal.pid, signal.SIGHUP)
    terminal.train_on()
    assert saved(folder) == before
    for rank in processes_with(str(terminal.job.resolve())):
        os.kill(rank, signal.SIGSTOP)  # so that none can save
    told = terminal.log.read_text().count("Ctrl-C again")
    os.write(terminal.handle, b"\x03")
    wait_for(lambda: terminal.read() and terminal.log.read_text().count("Ctrl-C again") > told)
    os.write(terminal.handle, b"\x03")
    assert terminal.end() == EXIT_INTERRUPTED
    assert saved(folder) == before
    assert "Traceback" not in terminal.log.read_text()


@pytest.mark.ray
def test_actors_and_commands_take_modules_of_the_working_directory_last(tmp_path):
    (tmp_path / "mine.py").write_text("def reward(prompt, response):\n    return len(response)\n")
    for name in ("profile", "queue", "typer", "statistics", "numpy", "yaml"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a')\n")
    code = """
import os, sys
from vcsoup_dist.import_paths import import_last
import_last(os.getcwd())
import ray
from vcsoup_dist.launch.ray_cluster import ray_cluster
from vcsoup_dist.recipe import Launch
from pathlib import Path

def look():
    import vcsoup_dist
    import importlib, profile, queue, statistics, numpy, yaml
    return importlib.import_module("mine").reward([], "four")

with ray_cluster(Launch(), Path(".")):
    print(ray.get(ray.remote(look).remote()))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "4", done.stderr
    assert not (tmp_path / "ran").exists()
