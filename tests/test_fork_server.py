"""Forked commands and ranks are to tests what real ones are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import run_vcsoup
from fork_server import call_forked, can_fork, run_forked, server

from vcsoup_dist.errors import Preempted, UserError
from vcsoup_dist.launch.ranks import run_ranks

pytestmark = pytest.mark.processes

LOOK = """
import atexit, os, signal, sys, threading
print(os.getcwd(), os.environ.get("MARK"), sys.argv[1:], sys.path[0], sys.stdin.read())
print([signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)])
print("Grüße", file=sys.stderr)
threading.Thread(target=print, args=["thread"]).start()
atexit.register(print, "end")
sys.exit({code})
"""
RANK = """
import os, sys
from pathlib import Path
from vcsoup_dist.processes import die_with_parent
die_with_parent(int(os.environ["VCSOUP_LAUNCHER"]))
rank, imported = os.environ["RANK"], "deepspeed" in sys.modules
print(f"rank {rank} of {os.environ['WORLD_SIZE']}: {imported}, {os.environ['MARK']}")
print("said by rank", rank, file=sys.stderr)
Path(sys.argv[1] + rank).write_text(f"{os.getppid()} {os.environ['VCSOUP_LAUNCHER']}")
sys.exit(3 if Path(sys.argv[1]).exists() and rank == "1" else 0)
"""


def compared(command: list[str], folder: Path, **variables: str) -> list[tuple[int, str, str]]:
    """Exit code and output of a forked and of a real process."""
    environment = {**os.environ, "PYTHONPATH": str(folder), **variables}
    forked = run_forked(command, folder=folder, environment=environment, timeout=200)
    real = subprocess.run(
        [sys.executable, "-P", "-m", *command],
        cwd=folder, env=environment, stdin=0, capture_output=True, text=True,
    )  # fmt: skip
    return [(each.returncode, each.stdout, each.stderr) for each in (forked, real)]


@pytest.mark.parametrize("code", ["0", "7", "None", "'a line'"])
def test_a_forked_module_is_as_a_process_of_its_own(tmp_path, code):
    (tmp_path / "look.py").write_text(LOOK.replace("{code}", code))
    forked, real = compared(["look", "a", "b c"], tmp_path, MARK="here")
    assert forked == real
    assert "thread\nend\n" in forked[1]


def test_an_exception_is_a_traceback_and_exit_code_1(tmp_path):
    (tmp_path / "look.py").write_text("raise ValueError('bad')\n")
    code, said, errors = compared(["look"], tmp_path)[0]
    assert (code, said) == (1, "") and errors.endswith("ValueError: bad\n")


def test_a_process_that_takes_too_long_is_killed(tmp_path):
    (tmp_path / "look.py").write_text("import time\ntime.sleep(600)\n")
    options = {"folder": tmp_path, "environment": {**os.environ, "PYTHONPATH": str(tmp_path)}}
    child = server().start("run", ["look"], files=[0, 1, 2], **options)
    with pytest.raises(TimeoutError):
        child.wait(0.1)
    child.kill()
    assert child.returncode == -signal.SIGKILL
    with pytest.raises(subprocess.TimeoutExpired):
        run_forked(["look"], timeout=0.1, **options)


def test_one_command_leaves_nothing_to_the_next(tmp_path):
    (tmp_path / "look.py").write_text(
        "import os, json\nprint(vars(json).get('seen'), os.environ.get('ONE'))\n"
        "json.seen = 1\nos.environ['ONE'] = '1'\nos.chdir('/')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for _ in range(2):
        done = run_forked(["look"], folder=tmp_path, environment=environment, timeout=200)
        assert done.stdout == "None None\n"


def test_what_libraries_read_when_they_are_imported_needs_a_process_of_its_own(tmp_path):
    set_since = {"VCSOUP_SITE": "x", "PYTHONPATH": "/x", "PYTHONBREAKPOINT": "as.ray.sets.it"}
    assert can_fork({**os.environ, **set_since})
    assert not can_fork({**os.environ, "HF_HOME": "/elsewhere"})
    assert run_vcsoup("--version", folder=tmp_path, HF_HOME=str(tmp_path)).returncode == 0


@pytest.fixture
def rank(tmp_path, monkeypatch) -> Path:
    """Where a rank `forked_test_rank` takes its job."""
    (tmp_path / "forked_test_rank.py").write_text(RANK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("MARK", "here")
    return tmp_path / "job"


def test_ranks_are_children_of_their_launcher_and_have_the_libraries(rank, capfd):
    call_forked(run_ranks, "forked_test_rank", rank, 2, 1, rank.parent / "logs")
    for number in "01":
        parent, launcher = rank.with_name(f"job{number}").read_text().split()
        assert parent == launcher != str(os.getpid())
    log = (rank.parent / "logs" / "rank-1.log").read_text()
    assert sorted(log.splitlines()) == ["rank 1 of 2: True, here", "said by rank 1"]
    assert capfd.readouterr().err == "said by rank 0\n"


def test_a_rank_that_fails_is_an_error_here(rank):
    rank.touch()
    with pytest.raises(UserError, match=r"rank 1 ended with exit code 3(?s:.)*said by rank 1"):
        call_forked(run_ranks, "forked_test_rank", rank, 2, 1, rank.parent / "logs")


def preempt(by: int) -> None:
    raise Preempted(by)


def test_what_a_called_function_raises_comes_back():
    with pytest.raises(Preempted) as caught:
        call_forked(preempt, signal.SIGTERM)
    assert caught.value.by == signal.SIGTERM
    assert call_forked(os.getpid) != os.getpid()
