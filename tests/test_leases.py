"""Locks where several hosts may share the file system, and flock may fail, lie or be lost."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vcsoup_dist import leases, locks
from vcsoup_dist.errors import EXIT_PREEMPTED, UserError
from vcsoup_dist.file_systems import file_system, may_be_shared
from vcsoup_dist.locks import EXCLUSIVE, SHARED, Lock, is_locked

HOLD = """
import sys, time
from pathlib import Path
from vcsoup_dist import locks
locks.may_be_shared = lambda path: True
with locks.Lock(Path(sys.argv[1])) as lock:
    assert lock.take(locks.EXCLUSIVE)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The file of a lock, on a file system that seems to be shared, where all goes quickly."""
    monkeypatch.setattr(locks, "may_be_shared", lambda path: True)
    monkeypatch.setattr(leases, "LOOK", 0.02)
    monkeypatch.setattr(leases, "_ended", set())
    monkeypatch.setattr(locks, "ENTRY", 0.2)
    return tmp_path / "lock"


def put_lease(lease: Path, beat: int = 0) -> None:
    """What a process on another host leaves there."""
    fields = {"host": "far", "boot": "other", "pid": 7, "started": 1, "nonce": "n", "takeover": 0.6}
    aside = lease.with_name("aside")
    aside.write_text(json.dumps({**fields, "beat": f"{beat:012}"}))
    aside.rename(lease)


def hold(path: Path, takeover: float = 90) -> subprocess.Popen[str]:
    """Another process of this host that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        env={"PYTHONPATH": ":".join(sys.path), "VCSOUP_TAKEOVER": str(takeover)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_file_system_of_one_host_needs_no_leases(tmp_path):
    assert file_system(tmp_path) and not may_be_shared(tmp_path)
    assert may_be_shared(Path("/proc"))  # any that is not known
    with Lock(tmp_path / "lock") as lock:
        assert lock.take(EXCLUSIVE)
        assert [each.name for each in tmp_path.iterdir()] == ["lock"]


def test_a_lock_that_is_given_up_leaves_its_file_alone(path):
    with Lock(path) as lock:
        assert lock.take(EXCLUSIVE) and lock.take(SHARED) and lock.take(EXCLUSIVE)
        assert lock.is_kept() and len(list(path.parent.iterdir())) == 3
        assert is_locked(path)
    assert [each.name for each in path.parent.iterdir()] == ["lock"]
    assert not is_locked(path)


@pytest.mark.parametrize("kind", [EXCLUSIVE, SHARED])
def test_a_process_on_another_host_that_gives_no_sign_of_life_is_taken_over(path, kind):
    path.touch()
    put_lease(leases.held_by_one(path))
    assert is_locked(path)
    began = time.monotonic()
    with Lock(path) as lock:
        assert lock.take(kind)
        assert 0.6 < time.monotonic() - began < 5


def test_a_process_on_another_host_that_shares_the_lock_keeps_it_from_one_alone(path):
    share = path.with_name("lock.shared-far-7-n")
    put_lease(share)
    with Lock(path) as lock:
        assert lock.take(SHARED)  # beside it, without a wait
        with keeping_alive(share):
            assert not lock.take(EXCLUSIVE)
        assert lock.signature() == "pid 7 on far"
        assert lock.take(EXCLUSIVE)  # it has fallen silent


def test_many_processes_of_a_lost_host_are_waited_for_together_and_once(path):
    shares = [path.with_name(f"lock.shared-far-{i}-n") for i in range(20)]
    for share in shares:
        put_lease(share)
    began = time.monotonic()
    with Lock(path) as lock:
        assert lock.take(EXCLUSIVE)
    assert 0.6 < time.monotonic() - began < 5 and not any(each.exists() for each in shares)
    put_lease(leases.held_by_one(path))  # of the same process
    began = time.monotonic()
    with Lock(path) as lock:
        assert lock.take(EXCLUSIVE)
    assert time.monotonic() - began < 0.6


@pytest.mark.parametrize("kind", [EXCLUSIVE, SHARED])
def test_where_every_host_has_its_own_locks_a_living_holder_is_not_disturbed(path, kind):
    lease = leases.held_by_one(path)
    put_lease(lease)
    with keeping_alive(lease), Lock(path) as lock:
        assert not lock.take(kind)
        assert lock.signature() == "pid 7 on far"
        assert lease.exists()


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_locks_fail_the_leases_do(path, error, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(error, "no locks here")

    monkeypatch.setattr(fcntl, "flock", fail)
    with Lock(path) as one, Lock(path) as other:
        assert one.take(EXCLUSIVE)
        assert not other.take(EXCLUSIVE) and not other.take(SHARED)


@pytest.mark.parametrize("text", ["soon", "0", "-5", "nan", "inf"])
def test_a_takeover_that_is_no_time_is_a_line(monkeypatch, text):
    monkeypatch.setenv("VCSOUP_TAKEOVER", text)
    with pytest.raises(UserError, match="VCSOUP_TAKEOVER"):
        leases.takeover.__wrapped__()


def test_a_lease_that_does_not_fit_on_the_disk_is_no_lease(path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Lock(path) as lock:
        monkeypatch.setattr(leases.os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*lock\.held'"):
            lock.take(EXCLUSIVE)
        monkeypatch.undo()
    assert [each.name for each in path.parent.iterdir()] == ["lock"]


@pytest.mark.processes
@pytest.mark.kills
def test_a_killed_process_of_this_host_is_taken_over_without_waiting(path, monkeypatch):
    process = hold(path)
    monkeypatch.setattr(leases, "LOOK", 60)
    with Lock(path) as lock:
        assert not lock.take(EXCLUSIVE)
        process.kill()
        process.wait()
        assert lock.take(EXCLUSIVE, timeout=5)


@pytest.mark.processes
def test_a_process_whose_lease_was_taken_away_ends(path):
    process = hold(path, takeover=3)
    leases.held_by_one(path).unlink()
    put_lease(leases.held_by_one(path))
    _, said = process.communicate(timeout=30)
    assert process.returncode == EXIT_PREEMPTED
    assert "another process has taken it over" in said and len(said.splitlines()) == 1
    assert leases.read(leases.held_by_one(path)).text == "pid 7 on far"


@pytest.mark.processes
def test_a_process_that_cannot_renew_its_lease_ends_before_it_is_taken_over(path):
    folder = path.with_name("folder")
    folder.mkdir()
    process = hold(folder / "lock", takeover=3)
    began = time.monotonic()
    folder.rename(path.with_name("elsewhere"))
    folder.touch()
    _, said = process.communicate(timeout=30)
    assert process.returncode == EXIT_PREEMPTED and time.monotonic() - began < 3
    assert "could not be renewed for 2 s (Not a directory)" in said


class keeping_alive:
    """A living process on another host that holds a lease."""

    def __init__(self, lease: Path) -> None:
        self.lease = lease
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        beat = 0
        while not self.ended.wait(0.05):
            put_lease(self.lease, beat := beat + 1)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


CONTENDER = """
import os, random, socket, sys, time
from pathlib import Path
from vcsoup_dist import leases, locks

host, path, log = sys.argv[1], Path(sys.argv[2]), os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND)
locks.may_be_shared = lambda path: True
locks.flock = lambda *_: True  # every host has its own locks
socket.gethostname = lambda: host
leases.takeover, leases.LOOK = lambda: 1.5, 0.05
end = leases._end

def say(what):
    os.write(log, f"{what} {host}\\n".encode())

def give_up(*why):
    say("left")
    end(*why)

leases._end = give_up
for turn in range(int(sys.argv[4])):
    lock = locks.Lock(path)
    lock.take(locks.EXCLUSIVE, None)
    say("came")
    time.sleep(random.random() / 20)
    if str(turn) == sys.argv[5]:
        say("left")
        os._exit(1)
    say("left")
    lock.close()
"""


@pytest.mark.processes
@pytest.mark.kills
def test_many_hosts_that_take_over_from_dead_ones_never_hold_a_lock_at_the_same_time(path):
    log = path.with_name("log")
    log.touch()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, f"host-{i}", path, log, "6", dies_at],
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        for i, dies_at in enumerate(["2", "2", "never", "never", "never"])
    ]
    for process in processes:
        process.wait(timeout=120)
    said = log.read_text().split()
    assert said[0::2] == ["came", "left"] * (len(said) // 4)
    assert said[1::4] == said[3::4] and len(said) // 4 >= 3 * 6 + 2 * 2
