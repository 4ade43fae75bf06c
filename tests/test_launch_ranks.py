"""The launcher of ranks: who failed, who is ended, and who is asked to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from training_world import processes_with

from vcsoup_dist.errors import EXIT_PREEMPTED, Preempted, UserError
from vcsoup_dist.launch import stop_signals
from vcsoup_dist.launch.rank_logs import report_user_error
from vcsoup_dist.launch.ranks import run_ranks
from vcsoup_dist.launch.stop_signals import raise_if_stop_requested

START = """
import os, signal, sys, time
from pathlib import Path
rank = int(os.environ["RANK"])
logs = Path(os.environ["VCSOUP_LOGS"])
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run two ranks of the given code."""

    def run(code: str) -> None:
        (tmp_path / "small_rank.py").write_text(START + code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        run_ranks("small_rank", tmp_path / "job", 2, 1, tmp_path / "logs")

    monkeypatch.setattr(stop_signals, "_received", None)
    yield run
    assert not processes_with(str(tmp_path / "job"))


@pytest.mark.ranks
def test_a_later_rank_that_fails_ends_the_first_and_its_log_tail_is_shown(run):
    with pytest.raises(UserError, match="(?s)rank 1 ended with exit code 3; .*rank-1.log.*no luck"):
        run("""
if rank == 1:
    print("no luck", file=sys.stderr)
    sys.exit(3)
time.sleep(600)
""")


@pytest.mark.ranks
def test_the_first_rank_that_fails_is_named_and_not_its_peers(run):
    with pytest.raises(
        UserError, match="(?s)rank 1 ended with exit code 1; .*traceback.*the cause"
    ):
        run("""
if rank == 1:
    (logs / "rank-1.traceback").write_text("ValueError: the cause")
    sys.exit(1)
while not (logs / "rank-1.traceback").exists():
    time.sleep(0.01)
time.sleep(0.5)
(logs / "rank-0.traceback").write_text("Connection closed by peer")
sys.exit(1)
""")


@pytest.mark.ranks
@pytest.mark.kills
def test_a_rank_that_was_killed_is_named_even_where_its_peer_ends_sooner(run):
    with pytest.raises(UserError, match="rank 1 ended by signal 9"):
        run("""
if rank == 1:
    while not (logs / "rank-0.traceback").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
(logs / "rank-0.traceback").write_text("Connection closed by peer")
sys.exit(1)
""")


@pytest.mark.ranks
def test_a_mistake_that_a_person_can_mend_is_told_in_its_own_words(run):
    with pytest.raises(UserError, match="^mend this$"):
        run("""
if rank == 1:
    (logs / "rank-1.error").write_text("mend this")
    sys.exit(2)
time.sleep(600)
""")


STOPS = """
def stop(*_):
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR2})
(logs / f"up-{rank}").touch()
time.sleep(600)
"""


@pytest.mark.ranks
def test_a_request_to_stop_is_handed_on_and_no_other_ranks_are_begun(run, tmp_path):
    def ask() -> None:
        while len(list((tmp_path / "logs").glob("up-*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Preempted):
        run(STOPS)
    with pytest.raises(Preempted):
        run("")
    with pytest.raises(Preempted):
        raise_if_stop_requested()


@pytest.mark.ranks
def test_a_request_that_comes_while_a_rank_starts_waits_until_it_can_act_on_it(run):
    with pytest.raises(Preempted):
        run("os.kill(os.getpid(), signal.SIGTERM)\n" + STOPS)


def test_when_the_time_is_over_no_more_is_begun(monkeypatch):
    monkeypatch.setenv("VCSOUP_BEGAN", str(time.time() - 90))
    raise_if_stop_requested()
    raise_if_stop_requested(max_minutes=2)
    with pytest.raises(Preempted):
        raise_if_stop_requested(max_minutes=1)


def test_the_command_exits_with_the_code_of_a_request_to_stop(monkeypatch, capsys):
    from vcsoup_dist.cli import main as cli

    def stopped() -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(60)

    before = {each: signal.getsignal(each) for each in stop_signals.STOP_SIGNALS}
    monkeypatch.setattr(cli, "app", stopped)
    try:
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert exit_.value.code == EXIT_PREEMPTED
    assert "run the same command to resume" in capsys.readouterr().err


def test_a_line_that_cannot_be_handed_over_is_printed(monkeypatch, capsys):
    monkeypatch.setenv("VCSOUP_LOGS", str(Path("/nowhere")))
    monkeypatch.setenv("RANK", "0")
    report_user_error(UserError("the disk is full"))
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.ranks
def test_a_rank_whose_words_find_no_room_on_the_disk_is_told_all_the_same(run):
    with pytest.raises(UserError, match="^No space left on device; make room$"):
        run("""
from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.rank_logs import report_user_error
if rank == 1:
    (logs / "rank-1.error").symlink_to("/dev/full")
    report_user_error(UserError("No space left on device;\\n make room"))
    sys.exit(2)
time.sleep(600)
""")
