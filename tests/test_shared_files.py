"""A node that does not see the run directory, or has another package, is named before any work."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from scoring_world import start_score, write_recipe
from test_slurm_ranks import Small
from training_world import wait_for

import vcsoup_dist
from vcsoup_dist.errors import UserError
from vcsoup_dist.launch import ray_check
from vcsoup_dist.launch.ray_cluster import ray_cluster
from vcsoup_dist.launch.shared_files import token, trouble_with, trouble_with_locks
from vcsoup_dist.processes import children, process_name
from vcsoup_dist.recipe import Launch

PACKAGE = Path(vcsoup_dist.__file__).parent
HOST = "127.0.0.2"  # of the Ray node that is different
NODE = [
    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={HOST}"),
    *("--num-cpus=1", "--object-store-memory=80000000"),
    *("--min-worker-port=0", "--max-worker-port=0"),
]

own_mounts = pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="no mount namespaces here: `unshare --mount` needs root",
)


def with_mounts(mount: str, *command: str) -> list[str]:
    """A command that sees other files than this process, by what the shell line `mount` does."""
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]


def hiding(folder: Path) -> str:
    return f"mount -t tmpfs none '{folder}'"


@pytest.fixture(scope="module")
def cluster():
    """A head of one CPU, to which nobody is connected."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def add_node(cluster) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Adds a node at HOST that sees other files, by a shell line of mounts."""
    started = []

    def alive() -> bool:
        nodes = cluster.global_state.node_table()
        return any(node["Alive"] and node["NodeManagerAddress"] == HOST for node in nodes)

    def add(mount: str) -> subprocess.Popen[bytes]:
        command = with_mounts(mount, *NODE, f"--address={cluster.address}")
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        wait_for(alive)
        return started[0]

    yield add
    for process in started:
        process.terminate()
        process.wait()
    wait_for(lambda: not alive())


def test_a_token_that_is_there_is_read_and_another_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("vcsoup_dist.launch.shared_files.PATIENCE", 0.0)
    with token(tmp_path, "seen") as path:
        assert trouble_with(str(path)) == ""
        text = path.read_text()
        path.write_text("")
        assert "(a file of it is empty)" in trouble_with(str(path))
        path.rename(path.with_name("elsewhere"))
        assert "(No such file or directory)" in trouble_with(str(path))
        assert text in path.name
    with token(tmp_path, "seen") as again:
        assert again != path


@pytest.mark.parametrize("error", [errno.ENOSYS, None])
def test_a_node_says_where_locks_fail_or_are_its_own(tmp_path, monkeypatch, error):
    with token(tmp_path, "look") as path:
        assert trouble_with_locks(str(path)) == ""

        def flock(*_: object) -> None:
            if error:
                raise OSError(error, "no locks here")

        monkeypatch.setattr("fcntl.flock", flock)
        assert ("has no locks" if error else "locks on each node alone") in trouble_with_locks(
            str(path)
        )


def test_a_token_that_a_killed_command_left_is_removed_later(tmp_path):
    old, new, other = (tmp_path / name for name in ("seen-1", "seen-2", "kept-1"))
    for file in (old, new, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (0, 0))
    with token(tmp_path, "seen"):
        assert not old.exists() and new.exists() and other.exists()


TAKE_ALL = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False)
class Busy: pass
actors = [ray.remote(num_cpus=1)(Busy).remote() for _ in range(2)]
sys.stdin.read()
"""


def connect(cluster: Cluster, folder: Path) -> None:
    with ray_cluster(Launch(ray_address=cluster.address), folder):
        pass


@pytest.mark.processes
@pytest.mark.ray
@own_mounts
def test_nodes_that_see_the_files_are_let_in_also_where_no_cpu_is_left(tmp_path, cluster, add_node):
    add_node("true")
    busy = subprocess.Popen(
        [sys.executable, "-c", TAKE_ALL, cluster.address], stdin=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: cluster.global_state.available_resources().get("CPU", 0) == 0)
        connect(cluster, tmp_path)
    finally:
        busy.communicate()
    assert not list(tmp_path.iterdir())


@pytest.mark.processes
@pytest.mark.ray
@own_mounts
@pytest.mark.parametrize(
    ("mount", "message"),
    [
        (hiding(PACKAGE), "vcsoup_dist cannot be imported .*; install version"),
        (
            f"echo '__version__ = \"0.0.9\"' > '{{old}}' && "
            f"mount --bind '{{old}}' '{PACKAGE / '__init__.py'}'",
            f"vcsoup_dist is version 0.0.9, and {vcsoup_dist.__version__} here; install the same",
        ),
    ],
    ids=["no package", "an old package"],
)
def test_a_node_with_another_package_is_named(tmp_path, cluster, add_node, mount, message):
    add_node(mount.format(old=tmp_path / "old.py"))
    with pytest.raises(UserError, match=rf"{cluster.address}: on \S+ \({HOST}\): {message}"):
        connect(cluster, tmp_path)


@pytest.mark.models
@pytest.mark.processes
@pytest.mark.ray
@own_mounts
def test_a_command_whose_run_directory_a_node_does_not_see_ends_with_a_line(
    tmp_path, tiny_model, cluster, add_node
):
    rewards = {"brief": {"callable": "rewards.py:words"}}
    write_recipe(tmp_path, tiny_model, rewards, {"actors": 1, "cpus_per_actor": 1})
    run = tmp_path / "run"
    run.mkdir()
    add_node(hiding(run))
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
    process = start_score(tmp_path, "--address", cluster.address, env=environment)
    said = process.communicate()[0]
    assert process.returncode == 2
    line = said.splitlines()[-1]
    assert f"vcsoup: --address: the Ray cluster at {cluster.address}: on " in line
    assert f"({HOST}): {run} is not the folder that the command sees" in line
    assert line.endswith("choose another with --run-dir")
    assert not list(run.glob(".shared-files*"))


@pytest.mark.processes
@pytest.mark.ray
@pytest.mark.kills
@own_mounts
@pytest.mark.parametrize("dies", [False, True], ids=["hangs", "dies"])
def test_a_node_that_does_not_answer(tmp_path, cluster, add_node, monkeypatch, caplog, dies):
    monkeypatch.setattr(ray_check, "QUIET", 0.5)
    monkeypatch.setattr(ray_check, "ANSWER", 120.0 if dies else 8.0)
    process = add_node("true")
    raylet = next(pid for pid in children(process.pid) if process_name(pid) == "raylet")
    os.kill(raylet, signal.SIGSTOP)

    class Kill(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if dies and "waiting for an answer from" in record.getMessage():
                os.kill(raylet, signal.SIGKILL)

    kill = Kill()
    logging.getLogger("vcsoup").addHandler(kill)
    try:
        if dies:
            connect(cluster, tmp_path)
        else:
            with pytest.raises(UserError, match=rf"on .*\({HOST}\)[^:]*: no answer for 8 s; "):
                connect(cluster, tmp_path)
            os.kill(raylet, signal.SIGCONT)
    finally:
        logging.getLogger("vcsoup").removeHandler(kill)
    assert "waiting for an answer from" in caplog.text and HOST in caplog.text


@pytest.fixture
def n2_sees(slurm) -> Iterator[Callable[[str], None]]:
    """Restarts slurmd of n2 so that it sees other files, by a shell line of mounts."""
    conf = os.environ["SLURM_CONF"]
    pid_file = Path(conf).parent / "run" / "slurmd-n2.pid"

    def restart(*prefix: str) -> None:
        old = int(pid_file.read_text())
        os.kill(old, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{old}").exists())
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        command = [*prefix, "slurmd", "-f", conf, "-N", "n2"]
        subprocess.run(command, check=True, env={**os.environ, "PATH": path})
        wait_for(pid_file.exists)

    yield lambda mount: restart(*with_mounts(mount))
    restart()


@pytest.mark.processes
@pytest.mark.slurm
@pytest.mark.kills
@own_mounts
def test_ranks_whose_node_does_not_see_the_log_folder_are_told_of(tmp_path, n2_sees):
    small = Small(tmp_path)
    small.logs.mkdir()
    n2_sees(hiding(small.logs))
    said = small.end(small.start("time.sleep(600)"), 2)
    assert said.splitlines()[-1] == (
        f"vcsoup: launcher srun: on n2: {small.logs} is not the folder that the command sees (No "
        "such file or directory); the run directory must be on a POSIX file system that all nodes "
        "share, at the same path: choose another with --run-dir"
    )
    assert "unseen" not in said and not list(small.logs.glob("rank-sees*"))
