"""A recipe on three hosts with GlusterFS between them: by hand, by Ray, by Slurm, and its faults.

Whatever way it goes, and whatever is lost on the way, the bytes are those of one host.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest
from hosts_world import RECIPE_FILE, SLURM, Hosts, hosts_up
from training_world import wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1800)]

MADE = ["scores", "filtered", "reference", "policies", "soups", "evaluation"]
QUICK = {"VCSOUP_TAKEOVER": "30"}
QUICKLY = ("--set", "training.steps=2", "--set", "evaluation.prompts=2")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    with hosts_up(tmp_path_factory.mktemp("runs") / "hosts", 3, "gluster") as hosts:
        hosts.run("h1", "python", "vcsoup/tests/hosts_world.py", "write_world", "world")
        yield hosts


@pytest.fixture(scope="module")
def alone(hosts) -> str:
    """Hashes of what one host makes."""
    hosts.run("h1", "vcsoup", "run", RECIPE_FILE, "-d", "alone")
    return hosts.sums("h3", "alone", MADE)


def vcsoup(hosts: Hosts, host: str, command: str, run: str) -> str:
    stage, *value = command.split()
    return hosts.run(host, "vcsoup", stage, *value, RECIPE_FILE, "-d", run, **QUICK)


def test_by_hand_every_command_on_another_host(hosts, alone):
    for host, command in (
        ("h1", "score"),
        ("h2", "filter"),
        ("h3", "reference"),
        ("h1", "train long"),
        ("h2", "train polite"),
        ("h3", "merge"),
        ("h2", "evaluate"),
        ("h1", "report"),
    ):
        vcsoup(hosts, host, command, "by-hand")
    assert hosts.sums("h2", "by-hand", MADE) == alone
    assert "nothing to do" in vcsoup(hosts, "h3", "run", "by-hand")


def test_on_a_ray_cluster_of_all_hosts(hosts, alone):
    address = hosts.do("ray").stdout.strip()
    said = hosts.run("h2", "vcsoup", "run", RECIPE_FILE, "-d", "ray", "--address", address)
    assert "locks on each node alone" not in said and "has no locks" not in said
    assert hosts.sums("h1", "ray", MADE) == alone


@pytest.mark.skipif(not SLURM, reason="no Slurm here; tools/slurm_cluster.sh up installs it")
def test_on_a_slurm_cluster_of_all_hosts(hosts, alone):
    hosts.do("slurm")
    setup = f"VCSOUP_SETUP=PATH={hosts.programs}:$PATH"
    hosts.run("h1", "env", setup, "vcsoup", "submit", RECIPE_FILE, "-d", "slurm")
    wait_for(lambda: time.sleep(2) or not hosts.run("control", "squeue", "--noheader"), 1500)
    assert hosts.sums("h3", "slurm", MADE) == alone
    logs = hosts.run("h3", "sh", "-c", "cat slurm/logs/jobs/*train*.log")
    assert "gloo uses eth0 here" in logs


def test_a_host_that_is_lost_in_mid_training_is_followed_by_another(hosts, alone):
    for command in ("score", "filter", "reference", "train polite"):
        vcsoup(hosts, "h1", command, "lost")
    training = hosts.start("h3", "vcsoup", "train", "long", RECIPE_FILE, "-d", "lost", **QUICK)
    checkpoint = "lost/work/policies/vc_soup/long/seed-0/scratch/step-*"
    wait_for(partial(hosts.there, "h1", checkpoint), 900)
    assert "on h3" in vcsoup(hosts, "h2", "status", "lost")
    hosts.do("lose", "h3")
    try:
        assert training.wait(timeout=60) != 0
        wait_for(lambda: "train was killed" in vcsoup(hosts, "h2", "status", "lost"), 180)
        assert " ago on h3, pid " in vcsoup(hosts, "h2", "status", "lost")
        vcsoup(hosts, "h2", "train long", "lost")
        policies = [line for line in alone.splitlines() if " policies/" in line]
        assert hosts.sums("h1", "lost", ["policies"]).splitlines() == policies
    finally:
        hosts.do("boot", "h3")


@pytest.fixture(scope="module")
def sshfs(tmp_path_factory) -> Iterator[Hosts]:
    """Two hosts, each of which has locks of its own."""
    with hosts_up(tmp_path_factory.mktemp("double") / "hosts", 2, "sshfs") as hosts:
        hosts.run("h1", "python", "vcsoup/tests/hosts_world.py", "write_world", "world")
        hosts.run("h1", "vcsoup", "run", RECIPE_FILE, "-d", "alone", *QUICKLY)
        yield hosts


@pytest.mark.parametrize(
    "attempt", [0, *(pytest.param(each, marks=pytest.mark.long) for each in range(1, 10))]
)
def test_two_runs_at_once_where_locks_do_not_reach_the_other_host_end_as_one(sshfs, attempt):
    run = f"double-{attempt}"
    command = ("vcsoup", "run", RECIPE_FILE, "-d", run, *QUICKLY)
    both = [sshfs.start(host, *command) for host in ("h1", "h2")]
    for process in both:
        said, _ = process.communicate(timeout=600)
        assert process.returncode in (0, 2) and "Traceback" not in said, said
        if process.returncode:
            assert "is being made by another process (pid " in said, said
    assert any(process.returncode == 0 for process in both)
    assert sshfs.sums("h2", run, MADE) == sshfs.sums("h1", "alone", MADE)
