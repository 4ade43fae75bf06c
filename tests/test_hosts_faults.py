"""A fault in the middle of every stage, on three hosts with GlusterFS between them.

Each fault is lived through, or ends what it meets with one line within a bounded time. The same
command then makes the bytes of one host. `make test-hosts` tries each fault in one stage, `make
test-long` all of them in all stages.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import pytest
from hosts_world import RECIPE_FILE, SLURM, Hosts, hosts_up
from training_world import wait_for

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not SLURM, reason="no Slurm here; tools/slurm_cluster.sh up installs it"),
]

STAGES = ("score", "train", "merge", "evaluate")
FAULTS = (
    "a host is lost",
    "the driver's host is lost",
    "a link is cut for 20 s",
    "a link is cut for good",
    "the file server is gone for 30 s",
    "the file server is gone for good",
    "the disk is full",
)
CHOSEN = {
    ("score", "a host is lost"),
    ("train", "the driver's host is lost"),
    ("merge", "a link is cut for 20 s"),
    ("evaluate", "a link is cut for good"),
    ("evaluate", "the file server is gone for 30 s"),
    ("merge", "the file server is gone for good"),
    ("score", "the disk is full"),
}
QUICK = {"VCSOUP_TAKEOVER": "30"}
ENDS_WITHIN = 300
"""Seconds. Ray takes up to 30 to miss a node, GlusterFS 10, a lease 20."""
FILL = """
free=$(df --output=avail --block-size=1 /mnt/disk | tail -n 1)
fallocate --length $((free - 1000000)) /mnt/disk/full
cat /dev/zero >> /mnt/disk/full
"""
MERGE = ("policies/one", "policies/other", "--grid", "0.05", "--shard-size", "9MB")


def every_case() -> Iterator[object]:
    for stage in STAGES:
        for fault in FAULTS:
            marks = () if (stage, fault) in CHOSEN else pytest.mark.long
            yield pytest.param(stage, fault, marks=marks)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    with hosts_up(tmp_path_factory.mktemp("faults") / "hosts", 3, "gluster") as hosts:
        hosts.run("h1", "python", "vcsoup/tests/hosts_world.py", "write_world", "world")
        hosts.run("h1", "python", "vcsoup/tests/hosts_world.py", "write_policies", "policies")
        hosts.do("slurm")
        yield hosts


@pytest.fixture(scope="module")
def alone(hosts) -> str:
    """The name of a run directory that one host made."""
    hosts.run("h1", "vcsoup", "run", RECIPE_FILE, "-d", "alone")
    hosts.run("h1", "vcsoup", "merge", *MERGE, "--out", "alone-merged")
    return "alone"


class End(NamedTuple):
    """How a command ended that ran on a host."""

    host: str
    code: int
    said: str


class Work(Protocol):
    """One stage in one run directory, whose earlier stages are made."""

    run: str
    made: Sequence[str]
    """Folders, in the run directory, of what the stage makes."""
    driver: str
    """The host of what the user started."""
    other: str
    """The host of something that this started elsewhere."""

    def begin(self) -> None:
        """Start it; returns in the middle of it."""

    def let_go(self) -> None:
        """What slowed it down no longer does."""

    def wait(self) -> None:
        """Until its end; of a job, until it is in the queue again."""

    def ends(self) -> Sequence[End]:
        """How its commands ended. The shared folder answers."""

    def again(self) -> bool:
        """The same on a host that was not lost; whether it is made now."""


class OnRay:
    """A stage with an actor on every host, which is slow while `world/slow` is there.

    The head of the cluster is on h1.
    """

    driver, other = "h2", "h3"

    def __init__(self, hosts: Hosts, run: str, stage: str, made: str) -> None:
        self.hosts, self.run, self.made = hosts, run, [made]
        self.command = ("vcsoup", stage, RECIPE_FILE, "-d", run)

    def begin(self) -> None:
        address = self.hosts.do("ray").stdout.strip().splitlines()[-1]
        self.hosts.run(
            "h1", "sh", "-c", "rm -rf world/at-work; mkdir world/at-work; touch world/slow"
        )
        self.process = self.hosts.start(self.driver, *self.command, "--address", address, **QUICK)
        wait_for(partial(self.hosts.there, "h1", f"world/at-work/{self.other}*"), 120)

    def let_go(self) -> None:
        self.hosts.run("h1", "rm", "-f", "world/slow")

    def wait(self) -> None:
        self.said = said_by(self.process)

    def ends(self) -> list[End]:
        return [End(self.driver, self.process.returncode, self.said)]

    def again(self) -> bool:
        return succeeds(self.hosts, "h1", *self.command, "--address", "local")


class OnSlurm:
    """Training on two nodes by slurm/train_value.sh."""

    driver, other = "h1", "h2"
    made = ("policies",)

    def __init__(self, hosts: Hosts, run: str) -> None:
        self.hosts, self.run = hosts, run

    def begin(self) -> None:
        self._submit()
        place = f"{self.run}/work/policies/vc_soup/long/seed-0/scratch/step-*"
        wait_for(partial(self.hosts.there, "h3", place), 180)

    def _submit(self) -> None:
        variables = {
            "VCSOUP_SETUP": f"PATH={self.hosts.programs}:$PATH",
            "VCSOUP_RUN_DIR": self.run,
            "VCSOUP_LOG_DIR": "job-logs",
            **QUICK,
        }
        options = ("--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2")
        command = ("sbatch", *options, "vcsoup/slurm/train_value.sh", RECIPE_FILE, "long")
        self.job = self.hosts.run("control", *command, **variables).strip().splitlines()[-1]

    def let_go(self) -> None:
        pass

    def wait(self) -> None:
        wait_for(lambda: time.sleep(1) or self._is_at_its_end() or self._went_back(), ENDS_WITHIN)

    def _record(self) -> dict[str, str]:
        said = self.hosts.run("control", "scontrol", "show", "job", self.job, "--oneliner")
        return dict(field.split("=", 1) for field in said.split() if "=" in field)

    def _is_at_its_end(self) -> bool:
        return self._record()["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")

    def _went_back(self) -> bool:
        record = self._record()
        return record["JobState"] == "PENDING" or record["Restarts"] != "0"

    def ends(self) -> list[End]:
        code = 75 if self._went_back() else int(self._record()["ExitCode"].split(":")[0])
        logs = self.hosts.run("h3", "sh", "-c", f"cat job-logs/*-{self.job}-*.log")
        assert logs.startswith("== "), logs
        return [End(self.driver, code, logs)]

    def again(self) -> bool:
        wait_for(lambda: time.sleep(1) or self._is_at_its_end(), 400)
        assert self.ends()[0].code in (0, 2, 75), self.ends()
        if self._record()["JobState"] == "COMPLETED":
            return True
        self._submit()
        return False


class ByRanks:
    """A merge, a rank of which is on every host; the first stands for the driver's."""

    driver, other = "h1", "h3"
    made = (".",)

    def __init__(self, hosts: Hosts, run: str) -> None:
        self.hosts, self.run = hosts, run

    def begin(self) -> None:
        self.ranks = [
            self.hosts.start(f"h{rank + 1}", *self._rank(rank), **QUICK) for rank in range(3)
        ]
        place = f"{self.run}.partial/soups/*/*.safetensors"
        wait_for(partial(self.hosts.there, "h2", place), 60)

    def _rank(self, rank: int) -> tuple[object, ...]:
        share = ("--rank", rank, "--world-size", 3)
        return ("vcsoup", "merge", *MERGE, "--out", self.run, *share)

    def let_go(self) -> None:
        pass

    def wait(self) -> None:
        self.said = [said_by(process) for process in self.ranks]

    def ends(self) -> list[End]:
        codes = [process.returncode for process in self.ranks]
        return [End(f"h{i + 1}", codes[i], said) for i, said in enumerate(self.said)]

    def again(self) -> bool:
        return all([succeeds(self.hosts, "h2", *self._rank(rank)) for rank in range(3)])


def succeeds(hosts: Hosts, host: str, *command: object) -> bool:
    """Whether a command did; one that did not has said so in a line."""
    quick = [f"{name}={value}" for name, value in QUICK.items()]
    done = hosts.do("exec", host, "env", *quick, *command, check=False)
    assert done.returncode in (0, 2, 75) and "Traceback" not in done.stdout, done.stdout
    return done.returncode == 0


def said_by(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=ENDS_WITHIN)[0]


def begun(hosts: Hosts, stage: str, fault: str, alone: str) -> tuple[Work, str]:
    """The stage in its middle, in a folder of its own, and the folder with what it is to make."""
    run = f"{stage}-{FAULTS.index(fault)}"
    if stage == "merge":
        work: Work = ByRanks(hosts, run)
        alone = "alone-merged"
    else:
        gone = {"score": "scores", "train": "policies/vc_soup/long", "evaluate": "evaluation"}[
            stage
        ]
        hosts.run("h1", "sh", "-c", f"cp -a {alone} {run} && rm -r {run}/locks {run}/{gone}")
        work = OnSlurm(hosts, run) if stage == "train" else OnRay(hosts, run, stage, gone)
    work.begin()
    return work, alone


def break_(hosts: Hosts, work: Work, fault: str) -> Callable[[], object]:
    """Do it; returns what puts it right again, for what is not right by itself."""
    if "lost" in fault:
        host = work.driver if "driver" in fault else work.other
        hosts.do("lose", host)
        return lambda: hosts.do("boot", host)
    if fault == "the disk is full":
        hosts.do("exec", "files", "sh", "-c", FILL, check=False)
        return lambda: hosts.do("exec", "files", "rm", "/mnt/disk/full")
    host = "files" if "server" in fault else work.other
    hosts.do("cut", host)
    if "for good" in fault:
        return lambda: hosts.do("join", host)
    time.sleep(30 if "30 s" in fault else 20)
    hosts.do("join", host)
    return lambda: None


def wait_for_files(hosts: Hosts) -> None:
    for host in ("h1", "h2", "h3", "control"):
        wait_for(partial(hosts.sees_files, host), 120)


@pytest.mark.parametrize(("stage", "fault"), every_case())
def test_it_ends_in_bounded_time_and_the_same_command_makes_the_same_bytes(
    hosts, alone, stage, fault, record_property
):
    work, expected = begun(hosts, stage, fault, alone)
    heal = break_(hosts, work, fault)
    broken = time.monotonic()
    try:
        if fault.endswith(" s"):  # it is over
            wait_for_files(hosts)
        if "server is gone for good" not in fault:
            work.let_go()
        work.wait()
        record_property("seconds to the end", round(time.monotonic() - broken))
    finally:
        heal()
    wait_for_files(hosts)
    work.let_go()
    lost = {"a host is lost": work.other, "the driver's host is lost": work.driver}.get(fault)
    for end in work.ends():
        record_property(f"code on {end.host}", end.code)
        record_property(f"last words on {end.host}", end.said[-300:])
        # A process goes with its host; a job is put back into the queue.
        assert end.code in (0, 2, 75) or end.host == lost, end
        assert "Traceback" not in end.said and '  File "' not in end.said, end.said
    tries = 1
    while not work.again():
        tries += 1
        assert tries <= 4
        time.sleep(15)
    record_property("tries", tries)
    record_property("seconds to the result", round(time.monotonic() - broken))
    assert hosts.sums("h3", work.run, work.made) == hosts.sums("h3", expected, work.made)
    hosts.run("h1", "rm", "-r", work.run)
