"""A Ray cluster for the actors of a stage: one that runs already, or one of this machine alone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Launch

OBJECT_STORE = 256 << 20  # bytes; only paths and counts travel between actors
LONGEST_BASE = 24  # characters: Ray puts sockets below it, whose paths may have 107


@contextmanager
def ray_cluster(launch: Launch) -> Iterator[None]:
    """Connect to `launch.ray_address` or RAY_ADDRESS, else start Ray on this machine for the block.

    Actors see this process's own import paths (on a cluster: by a shared file system) and
    OMP_NUM_THREADS = `launch.threads`. Nothing that was started here outlives this process, even
    when it is killed.
    """
    import ray

    address = launch.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    # Within `ray job submit` our variables join the job's, and overrule those of the same name.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    settings = {
        "address": address,
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": {"env_vars": _actor_environment(launch.threads)},
    }
    if address == "local":
        with _local_ray(settings):
            yield
        return
    try:
        _knock(address)
        ray.init(**settings)
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
        raise UserError(
            f"launch.ray_address: no Ray cluster lets us in at {address}; is it running, with the "
            "same RAY_AUTH_MODE (`token` is the default of `ray start`, and not of programs)? "
            f"({' '.join(str(error).split())[:300]})"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where no one listens; `ray.init` takes minutes to find that out."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _local_ray(settings: dict[str, object]) -> Iterator[None]:
    import ray

    base = tempfile.gettempdir()
    base = base if len(base) <= LONGEST_BASE else "/tmp"
    folder = tempfile.mkdtemp(prefix="vcsoup-", dir=base)
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _end_with_us(folder) as agents_are:
            ray.init(
                **settings,
                num_cpus=max(cores, 2),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                _temp_dir=folder,
                _system_config={"enable_worker_prestart": False},
            )
            agents_are(
                agent
                for raylet in _children(os.getpid())
                if _name(raylet) == "raylet"
                for agent in _children(raylet)
            )
            yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _end_with_us(folder: str) -> Iterator[Callable[[Iterable[int]], None]]:
    """Kill Ray's agents and remove its `folder` when this process is killed.

    Ray has the kernel kill its server and raylet with their driver, but the raylet's two agents
    then try for a minute to report that death to the dead server (ray 2.60). A shell that waits
    for the end of a pipe from us kills them. It gets a session of its own, so that a kill of our
    process group leaves it. Yields what tells it the agents' pids.
    """
    script = (
        'read agents; read line; [ -n "$line" ] && exit; '
        '[ -n "$agents" ] && kill -9 $agents; sleep 3; rm -rf "$0"'
    )
    shell = subprocess.Popen(
        ["/bin/sh", "-c", script, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert shell.stdin is not None
    pipe = shell.stdin

    def agents_are(pids: Iterable[int]) -> None:
        pipe.write(f"{' '.join(str(pid) for pid in pids)}\n".encode())
        pipe.flush()

    try:
        yield agents_are
    finally:
        shell.communicate(b"well\nwell\n")


def _actor_environment(threads: int) -> dict[str, str]:
    own = (sys.prefix, sys.base_prefix)
    imports = [path for path in sys.path if path and not path.startswith(own)]
    package = str(Path(__file__).resolve().parents[2])
    if not package.startswith(own) and package not in imports:
        imports.append(package)
    return {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(imports),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # an actor without a GPU sees none
    }


def _children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it ended meanwhile
                continue
            # "pid (name) state parent ..."; the name may hold spaces and brackets.
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
