"""The launcher `srun` on a real Slurm of two nodes, with ranks that load nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_world import TWO_NODES
from training_world import processes_with, wait_for

from vcsoup_dist.errors import EXIT_PREEMPTED
from vcsoup_dist.launch.srun import srun_command
from vcsoup_dist.launch.srun_rank import tasks_per_node

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

START = """
import os, signal, sys, time
from pathlib import Path
from vcsoup_dist.processes import die_with_parent
die_with_parent(int(os.environ["VCSOUP_LAUNCHER"]))
rank = int(os.environ["RANK"])
logs = Path(os.environ["VCSOUP_LOGS"])
def stop(*_):
    sys.exit(75)
def listen():
    signal.signal(signal.SIGUSR2, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR2})
"""
COMMAND = """
import sys
from pathlib import Path
from vcsoup_dist.cli import main as cli
from vcsoup_dist.launch.srun import run_on_slurm
cli.app = lambda: run_on_slurm("small_rank", Path(sys.argv[1]), 1, Path(sys.argv[2]))
cli.main()
"""
IN_SHELL = """
"$@" || code=$?
while [ "$code" = 137 ] && [ ! -e "$OVER" ]; do sleep 0.1; done  # the job outlives the command
exit $code
"""


class Small:
    """A command that runs the given code as ranks in an allocation of two nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.job, self.logs = folder, folder / "job", folder / "logs"
        self.started: list[subprocess.Popen[str]] = []

    def start(self, code: str, *options: str) -> subprocess.Popen[str]:
        (self.folder / "small_rank.py").write_text(START + code)
        command = [sys.executable, "-c", COMMAND, str(self.job), str(self.logs)]
        path = f"{self.folder}{os.pathsep}{os.environ['PYTHONPATH']}"
        process = subprocess.Popen(
            ["salloc", "--quiet", *(options or TWO_NODES), "sh", "-c", IN_SHELL, "sh", *command],
            env={**os.environ, "PYTHONPATH": path, "OVER": str(self.folder / "over")},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def command(self) -> int:
        """Process of the command itself."""
        for pid in processes_with(COMMAND):
            if Path(f"/proc/{pid}/comm").read_text().startswith("python"):
                return pid
        raise AssertionError("no command runs")

    def up(self) -> list[Path]:
        return sorted(self.logs.glob("here-*"))

    def end(self, process: subprocess.Popen[str], code: int) -> str:
        """What the command said; no rank is left."""
        said = process.communicate(timeout=60)[1]
        assert process.returncode == code, said
        wait_for(lambda: not processes_with(str(self.job)), 20)
        return said


@pytest.fixture
def small(tmp_path) -> Iterator[Small]:
    small = Small(tmp_path)
    yield small
    (tmp_path / "over").touch()
    for process in small.started:  # of a test that failed; the next ones need the nodes
        process.terminate()
        process.wait(60)


def test_every_task_is_the_rank_that_slurm_made_it(small):
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS"
    said = small.end(
        small.start(
            f"mine = map(os.environ.get, {names.split()})\n"
            "(logs / f'here-{rank}').write_text(' '.join(mine))\n"
            "(logs / f'node-{rank}').write_text(os.environ['SLURMD_NODENAME'])\n"
            "print('aside'); print('heard' if rank == 0 else 'unheard', file=sys.stderr)",
            *("--nodes=2", "--ntasks=3"),
        ),
        0,
    )
    places = [each.read_text().split() for each in small.up()]
    assert [" ".join(each[:4]) for each in places] == ["0 0 3 2", "1 1 3 2", "2 0 3 1"]
    assert len({tuple(each[4:]) for each in places}) == 1 and places[0][6] == "1"
    assert [(small.logs / f"node-{rank}").read_text() for rank in range(3)] == ["n1", "n1", "n2"]
    assert "starting 3 ranks, the tasks of Slurm job" in said
    assert "heard" in said and "unheard" not in said and "aside" not in said
    assert (small.logs / "rank-2.log").read_text() == "aside\nunheard\n"


def test_tasks_per_node_in_slurms_short_form():
    assert tasks_per_node("4(x2),3") == [4, 4, 3]
    assert tasks_per_node("12") == [12]


def test_options_for_a_container_go_to_srun_and_its_own_python_is_taken(monkeypatch):
    monkeypatch.setenv("VCSOUP_CONTAINER", "--container-image='/a b.sqsh' --container-writable")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    command = srun_command(2, "module", Path("job"))
    step, task = command[: command.index("env")], command[command.index("env") :]
    assert step[-2:] == ["--container-image=/a b.sqsh", "--container-writable"]
    assert "--cpus-per-task=3" in step
    assert task[2:] == ["python3", "-P", "-m", "vcsoup_dist.launch.srun_rank", "module", "job"]


def test_a_rank_that_fails_while_the_others_stop_on_request_is_an_error(small):
    said = small.end(small.start("time.sleep(rank); sys.exit(75 if rank == 0 else 3)"), 2)
    assert "vcsoup: rank 1 on n2 ended: exited with exit code 3" in said


def test_the_first_rank_that_fails_is_named_with_its_log_tail(small):
    said = small.end(
        small.start("""
if rank == 1:
    print("no luck", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1.5)
(logs / "rank-0.traceback").write_text("Connection closed by peer")
sys.exit(1)
"""),
        2,
    )
    assert "vcsoup: rank 1 on n2 ended: killed; the end of" in said
    assert said.endswith("vcsoup: no luck\n")


def test_a_mistake_that_a_person_can_mend_is_told_in_its_own_words(small):
    code = "(logs / f'rank-{rank}.error').write_text('mend this'); sys.exit(2)"
    assert small.end(small.start(code), 2).endswith("vcsoup: mend this\n")


def test_outside_a_job_one_line_says_so(small):
    command = [sys.executable, "-c", COMMAND, str(small.job), str(small.logs)]
    outside = {name: value for name, value in os.environ.items() if name != "SLURM_JOB_ID"}
    done = subprocess.run(command, env=outside, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no Slurm job here" in done.stderr


LISTENS = "listen()\n(logs / f'here-{rank}').touch()\ntime.sleep(600)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_request_to_the_command_reaches_the_ranks_of_all_nodes(small, number):
    process = small.start(LISTENS)
    wait_for(lambda: len(small.up()) == 2)
    os.kill(small.command(), number)
    assert small.end(process, EXIT_PREEMPTED).endswith("to resume\n")


def test_an_interrupted_command_ends_its_ranks(small):
    process = small.start(LISTENS)
    wait_for(lambda: len(small.up()) == 2)
    os.kill(small.command(), signal.SIGINT)
    assert small.end(process, 130).endswith("to resume\n")


def test_a_request_before_the_ranks_can_listen_is_kept_for_them(small):
    process = small.start(
        "(logs / f'here-{rank}').touch()\n"
        "while not (logs / 'asked').exists(): time.sleep(0.01)\n" + LISTENS
    )
    wait_for(lambda: len(small.up()) == 2)
    os.kill(small.command(), signal.SIGUSR2)
    time.sleep(0.3)
    (small.logs / "asked").touch()
    small.end(process, EXIT_PREEMPTED)


def test_a_request_while_the_step_starts_ends_it(small):
    process = small.start(LISTENS)
    wait_for(lambda: processes_with("small_rank"))
    os.kill(small.command(), signal.SIGUSR2)
    small.end(process, EXIT_PREEMPTED)


def test_no_rank_outlives_a_command_that_is_killed(small, tmp_path):
    process = small.start(LISTENS)
    wait_for(lambda: len(small.up()) == 2)
    os.kill(small.command(), signal.SIGKILL)
    wait_for(lambda: not processes_with("small_rank"), 20)
    assert process.poll() is None
    (tmp_path / "over").touch()
    process.communicate(timeout=20)


def test_a_step_that_slurm_ends_before_its_ranks_is_not_done(small):
    process = small.start(
        "(logs / f'here-{rank}').write_text(os.environ['SLURM_JOB_ID'])\n"
        "time.sleep(600)  # TERM is blocked"
    )
    wait_for(lambda: len(small.up()) == 2 and all(each.read_text() for each in small.up()))
    subprocess.run(["scancel", f"{small.up()[0].read_text()}.0"], check=True)
    assert "vcsoup: " in small.end(process, 2)


def test_a_rank_is_done_when_it_says_so_and_not_by_the_exit_code_of_srun(small):
    # As where srun has given up waiting: a rank that ends with 0 in silence.
    said = small.end(
        small.start("if rank == 1: os._exit(0)\nprint('bye', end='', file=sys.stderr)"), 2
    )
    assert "Slurm ended the step before its ranks did (1 of 2 were done)" in said
    assert "bye" in said and "vcsoup-rank-done" not in said
