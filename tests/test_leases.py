"""Locks where several hosts may share the file system, and flock may fail, lie or be lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vcsoup_dist import lease_files, leases, locks, processes
from vcsoup_dist.errors import EXIT_PREEMPTED, UserError
from vcsoup_dist.file_systems import file_system, may_be_shared
from vcsoup_dist.lease_files import held_by_one, read, takeover
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
    monkeypatch.setattr(leases, "_ended", {})
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


SHARE = """
import os, sys
from pathlib import Path
from vcsoup_dist import locks
locks.may_be_shared = lambda path: True
path = Path(sys.argv[1])
with locks.shared_by_process(path):
    print(*sorted(each.name.split("-")[0] for each in path.parent.iterdir()))
print(*(each.name for each in path.parent.iterdir()))
again = os.open(path, os.O_RDONLY)  # the number that has become free
if os.fork() == 0:
    os.read(again, 1)
    os._exit(0)
print(os.wait()[1])
"""


@pytest.mark.processes
def test_a_share_that_is_given_back_leaves_no_lease_and_closes_no_file_of_later(path):
    path.touch()
    command = [sys.executable, "-c", SHARE, str(path)]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.check_output(command, env=environment, text=True).splitlines() == [
        "lock lock.shared",
        "lock",
        "0",
    ]


@pytest.mark.parametrize("kind", [EXCLUSIVE, SHARED])
def test_a_process_on_another_host_that_gives_no_sign_of_life_is_taken_over(path, kind):
    path.touch()
    put_lease(held_by_one(path))
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
    put_lease(held_by_one(path))  # of the same process
    began = time.monotonic()
    with Lock(path) as lock:
        assert lock.take(EXCLUSIVE)
    assert time.monotonic() - began < 0.6


@pytest.mark.parametrize("kind", [EXCLUSIVE, SHARED])
def test_where_every_host_has_its_own_locks_a_living_holder_is_not_disturbed(path, kind):
    lease = held_by_one(path)
    put_lease(lease)
    with keeping_alive(lease), Lock(path) as lock:
        assert not lock.take(kind)
        assert lock.signature() == "pid 7 on far"
        assert lease.exists()


@pytest.mark.parametrize("kind", [EXCLUSIVE, SHARED])
def test_a_lock_that_the_file_server_keeps_for_a_lost_host_is_waited_for(path, kind):
    put_lease(held_by_one(path))
    with open(path, "a") as server:
        fcntl.flock(server, fcntl.LOCK_EX)
        with keeping_alive(held_by_one(path)), Lock(path) as lock:
            assert not lock.take(kind) and lock.signature() == "pid 7 on far"
        threading.Timer(2, fcntl.flock, (server, fcntl.LOCK_UN)).start()
        with Lock(path) as lock:
            assert lock.take(kind)


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
        takeover.__wrapped__()


def test_a_lease_that_does_not_fit_on_the_disk_is_no_lease(path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Lock(path) as lock:
        monkeypatch.setattr(lease_files.os, "fsync", full)
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
    held_by_one(path).unlink()
    put_lease(held_by_one(path))
    _, said = process.communicate(timeout=30)
    assert process.returncode == EXIT_PREEMPTED
    assert "another process has taken it over" in said and len(said.splitlines()) == 1
    assert read(held_by_one(path)).text == "pid 7 on far"


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


@pytest.fixture
def unending(monkeypatch):
    """A process that does not end itself."""
    monkeypatch.setattr(leases, "_end", lambda *_: None)


def test_a_lease_that_another_has_taken_over_is_not_given_back(path, unending):
    with Lock(path) as lock:
        assert lock.take(EXCLUSIVE)
        put_lease(held_by_one(path))
    assert read(held_by_one(path)).text == "pid 7 on far"


def test_a_lease_that_is_renewed_while_it_is_given_back_does_not_stay(path, monkeypatch):
    renewals = iter([7, 8])

    def read_and_renew(lease: Path) -> lease_files.Seen | None:
        seen = read(lease)
        if seen is not None and seen.holder and (beat := next(renewals, None)):
            lease_files.renew(lease, seen.holder, beat)
        return seen

    with Lock(path) as lock:
        assert lock.take(EXCLUSIVE)
        monkeypatch.setattr(lease_files, "read", read_and_renew)
    assert not held_by_one(path).exists()


def test_a_lease_that_could_not_be_removed_does_not_keep_its_own_process_out(path, monkeypatch):
    def cut(*_: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    with monkeypatch.context() as patch, Lock(path) as lock:
        assert lock.take(EXCLUSIVE)
        patch.setattr(leases, "remove_of", cut)
        lock.close()
        assert held_by_one(path).exists()
    with Lock(path) as lock:
        assert lock.take(EXCLUSIVE)


def test_a_process_that_left_a_lease_but_renews_others_has_not_ended(path):
    path.touch()
    put_lease(held_by_one(path))
    assert leases.wait_until_ended([held_by_one(path)]) == ""
    put_lease(held_by_one(path), beat=18)
    with keeping_alive(held_by_one(path), beat=18):
        assert leases.wait_until_ended([held_by_one(path)]) == "pid 7 on far"


@pytest.mark.processes
def test_a_process_whose_lock_was_removed_with_all_of_it_works_on(path):
    process = hold(path, takeover=3)
    locks.remove_lock(path)
    time.sleep(1)  # it looks every 0.17 s
    assert process.poll() is None and not held_by_one(path).exists()
    process.kill()
    process.communicate()


def test_who_removes_a_lock_leaves_the_lease_of_the_next_one(path, monkeypatch):
    give_back = leases.give_back

    def then_another_comes(lease: Path) -> bool:
        given = give_back(lease)
        put_lease(lease)
        return given

    with Lock(path) as lock:
        assert lock.take(EXCLUSIVE)
        monkeypatch.setattr(leases, "give_back", then_another_comes)
        locks.remove_lock(path)
        assert read(held_by_one(path)).text == "pid 7 on far"


def test_a_lease_that_took_too_long_to_write_is_no_lease(path, monkeypatch):
    late = 0.0
    create = leases.create

    def slowly(lease: Path, *arguments: object) -> bool:
        nonlocal late
        made = create(lease, *arguments)
        late += 100
        if made:
            put_lease(lease)  # it was waited for meanwhile
        return made

    monkeypatch.setattr(leases, "_clock", lambda: time.monotonic() + late)
    monkeypatch.setattr(leases, "create", slowly)
    assert not leases.make(held_by_one(path))
    assert read(held_by_one(path)).text == "pid 7 on far"


def test_a_lost_lease_of_the_history_does_not_end_the_work(path, monkeypatch):
    monkeypatch.setattr(leases, "_end", lambda *_: pytest.fail("it ended"))
    with open(path, "w") as file:
        locks.lock_for_process(file, path)
        lease = held_by_one(path)
        lease.unlink()
        leases._renewed._renew_one(lease, leases._renewed.holders[lease])
        assert lease not in leases._renewed.holders


def test_a_lease_whose_file_another_host_removed_is_gone(path, monkeypatch):
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    put_lease(held_by_one(path))
    holder = read(held_by_one(path)).holder
    monkeypatch.setattr(lease_files.os, "read", stale)
    assert not lease_files.renew(held_by_one(path), holder, 1)
    monkeypatch.setattr(Path, "read_bytes", stale)
    assert read(held_by_one(path)) is None


def test_a_clock_that_is_hours_ahead_takes_nothing_from_a_living_process(path):
    path.touch()
    put_lease(held_by_one(path))
    os.utime(held_by_one(path), (time.time() - 7200,) * 2)
    with Lock(path) as lock:
        began = time.monotonic()
        assert lock.take(EXCLUSIVE) and time.monotonic() - began > 0.6


def test_another_users_process_that_proc_hides_is_alive(monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError

    assert not processes.is_hidden(2**30)
    assert not processes.is_hidden(os.getpid())
    monkeypatch.setattr(processes.os, "kill", refuse)
    assert processes.is_hidden(2**30)
    holder = lease_files.Holder(socket.gethostname(), lease_files._boot(), 2**30, 1, "n", 90)
    assert holder.is_alive_here
    monkeypatch.setattr(processes.os, "access", lambda *_: False)  # hidepid=1 shows the folder
    assert processes.is_hidden(os.getpid())


class keeping_alive:
    """A living process on another host that holds a lease."""

    def __init__(self, lease: Path, beat: int = 0) -> None:
        self.lease = lease
        self.beat = beat
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.ended.wait(0.05):
            self.beat += 1
            put_lease(self.lease, self.beat)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


CONTENDER = """
import os, random, socket, sys, time
from pathlib import Path
from vcsoup_dist import lease_files, leases, locks, processes

host, path, log = sys.argv[1], Path(sys.argv[2]), os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND)
locks.may_be_shared = lambda path: True
locks.flock = lambda *_: True  # every host has its own locks
socket.gethostname = lambda: host
leases.takeover = lease_files.takeover = lambda: 1.5
leases.LOOK = 0.05
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
