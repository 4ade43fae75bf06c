"""Several hosts with a network file system between them: see tools/hosts.sh.

What takes part are network namespaces on this machine, GlusterFS and sshfs. Only `make test-hosts`
runs these.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from functools import partial

import pytest
from hosts_world import SHARED, Hosts, hosts_up
from training_world import wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

PUBLISH = ("python", "vcsoup/tests/hosts_publish.py")
QUICK = {"VCSOUP_TAKEOVER": "12"}
"""So that a lost host is taken over after 12 seconds, and one that is cut off ends after 8."""


@pytest.fixture(scope="module")
def gluster(tmp_path_factory) -> Iterator[Hosts]:
    """Three hosts with GlusterFS, which notices a lost link after five seconds."""
    folder = tmp_path_factory.mktemp("gluster") / "hosts"
    with hosts_up(folder, 3, "gluster", ping_timeout=5) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def sshfs(tmp_path_factory) -> Iterator[Hosts]:
    """Two hosts with sshfs, where every host has its own locks."""
    with hosts_up(tmp_path_factory.mktemp("sshfs") / "hosts", 2, "sshfs") as hosts:
        yield hosts


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    """The name of a run directory of the test's own."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:60]


def start(hosts: Hosts, host: str, run: str, seconds: int, *more: str) -> subprocess.Popen[str]:
    """A process that makes a product, once it works at it or waits."""
    process = hosts.start(host, *PUBLISH, run, seconds, *more, **QUICK)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(("works", "waiting")), line + process.stdout.read()
    return process


def ended(process: subprocess.Popen[str], code: int) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


def test_hosts_have_networks_names_and_folders_of_their_own_and_one_in_common(gluster):
    assert [gluster.run(f"h{i}", "hostname").strip() for i in (1, 2, 3)] == ["h1", "h2", "h3"]
    for folder in ("/tmp", "/dev/shm"):
        gluster.run("h1", "touch", f"{folder}/mine")
        gluster.run("h2", "test", "!", "-e", f"{folder}/mine")
    gluster.run("h1", "sh", "-c", "echo yes > note")
    assert gluster.run("h2", "cat", f"{SHARED}/note") == "yes\n"
    assert "10.77.0.2/24" in gluster.run("h2", "ip", "-brief", "address")
    where = gluster.run("h3", "python", "-c", "import vcsoup_dist as v; print(v.__file__)")
    assert where.startswith(f"{SHARED}/vcsoup/")


@pytest.mark.parametrize("kind", ["gluster", "sshfs"])
def test_a_second_writer_on_another_host_is_refused_or_waits_and_finds_the_product(
    request, run, kind
):
    hosts = request.getfixturevalue(kind)
    first = start(hosts, "h1", run, 12)
    waits = start(hosts, "h2", run, 1, "wait")
    said = hosts.run("h2", *PUBLISH, run, 1, code=2, **QUICK)
    assert "things/a is being made by another process (pid " in said and "on h1)" in said
    made = " ".join(sorted(f"h1-{i}" for i in range(12)))
    assert ended(first, 0).endswith(f"published {made}\n")
    assert ended(waits, 0).endswith(f"published {made}\n")


@pytest.mark.parametrize("kind", ["gluster", "sshfs"])
def test_what_a_killed_process_was_making_is_taken_over_by_another_host(request, run, kind):
    hosts = request.getfixturevalue(kind)
    first = start(hosts, "h1", run, 60)
    hosts.do("exec", "h1", "pkill", "-KILL", "-f", f"hosts_publish.py {run}")
    first.wait()
    said = hosts.run("h2", *PUBLISH, run, 1, **QUICK)
    assert "nothing from pid" in said and "on h1 for 12 s" in said
    assert said.splitlines()[-1] == "published h1-0 h2-0"


def test_a_link_that_is_cut_for_a_while_costs_time_alone(gluster, run):
    process = start(gluster, "h1", run, 6)
    gluster.do("cut", "h1")
    time.sleep(3)
    gluster.do("join", "h1")
    assert ended(process, 0).splitlines()[-1].startswith("published h1-0 h1-1")


def test_a_writer_whose_link_is_cut_ends_before_another_host_goes_on(gluster, run):
    process = start(gluster, "h1", run, 300)
    gluster.do("cut", "h1")
    try:
        began = time.monotonic()
        waits = start(gluster, "h2", run, 1, "wait")
        # By an error of the file system, or by the end of its lease.
        said, _ = process.communicate(timeout=60)
        assert process.returncode in (2, 75), said
        assert time.monotonic() - began < 40
        assert "run the same command to resume" in said and "Traceback" not in said
        made = ended(waits, 0).splitlines()[-1]
        assert made.startswith("published h1-0") and made.endswith("h2-0")
    finally:
        gluster.do("join", "h1")
        wait_for(partial(gluster.sees_files, "h1"), 120)


def test_what_a_lost_host_was_making_is_taken_over(gluster, run):
    process = start(gluster, "h3", run, 300)
    gluster.do("lose", "h3")
    try:
        process.wait(timeout=30)
        said = gluster.run("h2", *PUBLISH, run, 1, "wait", **QUICK)
        assert said.splitlines()[-1].startswith("published h2-0 h3-0")
    finally:
        gluster.do("boot", "h3")


def test_a_file_server_that_is_gone_for_a_while_costs_time_alone(gluster, run):
    process = start(gluster, "h1", run, 6)
    gluster.do("cut", "files")
    time.sleep(3)
    gluster.do("join", "files")
    assert ended(process, 0).splitlines()[-1].startswith("published h1-0 h1-1")


def test_a_file_server_that_stays_away_is_one_line_and_with_it_back_the_command_resumes(
    gluster, run
):
    process = start(gluster, "h1", run, 300)
    gluster.do("cut", "files")
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        gluster.do("join", "files")
    assert process.returncode in (2, 75), said
    assert "run the same command to resume" in said and "Traceback" not in said
    for host in ("h1", "h2", "h3", "control"):
        wait_for(partial(gluster.sees_files, host), 120)
    said = gluster.run("h1", *PUBLISH, run, 1, "wait", **QUICK)
    assert said.splitlines()[-1].startswith("published h1-0")


def test_a_full_disk_of_the_server_is_one_line_and_with_room_the_command_resumes(gluster, run):
    process = start(gluster, "h1", run, 300)
    gluster.do("exec", "files", "sh", "-c", "cat /dev/zero > /mnt/disk/full", check=False)
    said = ended(process, 2)
    assert "No space left on device" in said and "make room" in said
    gluster.do("exec", "files", "rm", "/mnt/disk/full")
    assert gluster.run("h2", *PUBLISH, run, 1, **QUICK).splitlines()[-1].endswith("h2-0")


MERGE = ("vcsoup", "merge", "policies/one", "policies/other", "--grid", "0.2", "--out")


@pytest.fixture(scope="module")
def merged(gluster) -> str:
    """Hashes of the soups that one process makes."""
    gluster.run("h1", "python", "vcsoup/tests/hosts_world.py", "write_policies", "policies")
    gluster.run("h1", *MERGE, "alone")
    return gluster.sums("h2", "alone", ["."])


def test_ranks_of_a_merge_on_several_hosts_make_what_one_process_makes(gluster, merged):
    ranks = [
        gluster.start(f"h{rank + 1}", *MERGE, "ranks", "--rank", rank, "--world-size", 3)
        for rank in range(3)
    ]
    for rank in ranks:
        ended(rank, 0)
    assert gluster.sums("h3", "ranks", ["."]) == merged


def test_a_merge_whose_link_is_cut_goes_on_on_another_host_to_the_same_bytes(gluster, merged):
    merge = gluster.start("h1", *MERGE, "cut", **QUICK)
    wait_for(partial(gluster.there, "h2", "cut.partial/soups/*/*.safetensors"), 60)
    gluster.do("cut", "h1")
    try:
        said = gluster.run("h2", *MERGE, "cut", code=2, **QUICK)
        assert "another process writes there (pid " in said and "on h1)" in said
        said, _ = merge.communicate(timeout=60)
        assert merge.returncode in (2, 75) and "run the same command" in said, said
        again = [*MERGE, "cut"]
        wait_for(lambda: gluster.do("exec", "h2", *again, check=False).returncode == 0, 120)
        assert gluster.sums("h3", "cut", ["."]) == merged
    finally:
        gluster.do("join", "h1")
        wait_for(partial(gluster.sees_files, "h1"), 120)
