"""A Ray cluster for the actors of a stage: one that runs already, or one of this machine alone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.import_paths import (
    IMPORT_LAST,
    folder_of_command,
    uninstalled_package,
)
from vcsoup_dist.launch.ray_check import check_nodes
from vcsoup_dist.launch.ray_signals import our_signals, stops_as_interrupts
from vcsoup_dist.lease_files import takeover
from vcsoup_dist.processes import children, process_name
from vcsoup_dist.recipe import Launch

OBJECT_STORE = 256 << 20  # bytes; only paths and counts travel between actors
LONGEST_BASE = 22  # characters: Ray puts sockets below it, whose paths may have 107


@contextmanager
def ray_cluster(launch: Launch, folder: Path) -> Iterator[None]:
    """Connect to `launch.ray_address` or RAY_ADDRESS, else start Ray on this machine for the block.

    Raises UserError where a node of a running cluster does not see `folder`, the run directory, as
    this one does. Actors have this process's own import paths (on a cluster: by the shared file
    system) and OMP_NUM_THREADS = `launch.threads`. Nothing that was started here outlives this
    process, even when it is killed.
    """

    address = launch.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    # Within `ray job submit` our variables join the job's, and overrule those of the same name.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    settings = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    variables = _actor_environment(launch.threads)
    if address == "local":
        cluster = _local_ray(settings, variables)
    else:
        origin = launch.ray_address_from if launch.ray_address else "RAY_ADDRESS"
        cluster = _remote_ray(settings, variables, origin, folder)
    with stops_as_interrupts(), cluster:
        yield


@contextmanager
def _remote_ray(
    settings: dict[str, Any], variables: dict[str, str], origin: str, folder: Path
) -> Iterator[None]:
    import ray

    address = settings["address"]
    try:
        _knock(address)
        with our_signals():
            ray.init(**settings, runtime_env={"env_vars": variables})
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
        raise UserError(
            f"{origin}: no Ray cluster lets us in at {address}; is it running, with the "
            "same RAY_AUTH_MODE (`token` is the default of `ray start`, and not of programs)? "
            f"({' '.join(str(error).split())[:300]})"
        ) from error
    try:
        check_nodes(folder, f"{origin}: the Ray cluster at {address}")
        yield
    finally:
        with our_signals():
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where no one listens; `ray.init` takes minutes to find that out."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _local_ray(settings: dict[str, Any], variables: dict[str, str]) -> Iterator[None]:
    import ray

    base = tempfile.gettempdir()
    base = base if len(base) <= LONGEST_BASE else "/tmp"
    folder = tempfile.mkdtemp(prefix="vcsoup-", dir=base)
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _end_with_us(folder) as agents_are:
            with _environment(variables):
                _start(
                    **settings,
                    num_cpus=max(cores, 2),
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE,
                    _temp_dir=f"{folder}/ray",  # Ray opens that to all users, and ours is closed
                    _system_config={
                        "enable_worker_prestart": False,
                        "prestart_worker_first_driver": False,
                    },
                )
            agents_are(agent for raylet in _raylets() for agent in children(raylet))
            yield
    finally:
        with our_signals():
            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables of the environment while the block starts processes.

    As a `runtime_env`, they would cost every actor a process before its own, which imports Ray too.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start(**settings: Any) -> None:
    import ray

    try:
        with our_signals():
            ray.init(**settings)
    except BaseException as error:
        _kill_raylets()
        if not isinstance(error, Exception):
            raise
        raise UserError(  # Ray's own are of many kinds, down to a bare Exception
            f"Ray cannot be started on this machine: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:500]}"
        ) from error


def _raylets() -> list[int]:
    return [pid for pid in children(os.getpid()) if process_name(pid) == "raylet"]


def _kill_raylets() -> None:
    """With their agents, which outlive for a minute a raylet that is not asked to end."""
    for raylet in _raylets():
        with suppress(ProcessLookupError):
            os.kill(raylet, signal.SIGSTOP)  # so that it starts no other
            for pid in [*children(raylet), raylet]:
                os.kill(pid, signal.SIGKILL)


@contextmanager
def _end_with_us(folder: str) -> Iterator[Callable[[Iterable[int]], None]]:
    """Kill Ray's agents and remove its `folder` when this process is killed.

    Ray has the kernel kill its server and raylet with their driver, but the raylet's two agents
    then try for a minute to report that death to the dead server (ray 2.60). A shell that waits
    for the end of a pipe from us kills them, and a little later a worker that was just being
    started, which would wait for the dead raylet. It gets a session of its own, so that a kill of
    our process group leaves it. Yields what tells it the agents' pids.
    """
    script = (
        'read agents; read line; [ -n "$line" ] && exit; '
        '[ -n "$agents" ] && kill -9 $agents; sleep 3; '
        'for p in /proc/[0-9]*; do grep -qs "$0/" "$p/cmdline" && kill -9 "${p#/proc/}"; done; '
        'rm -rf "$0"'
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
    last = folder_of_command()
    imports = [path for path in sys.path if path and path != last and not path.startswith(own)]
    imports += [each for each in uninstalled_package() if each not in imports]
    return {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(imports),
        IMPORT_LAST: last or "",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # an actor without a GPU sees none
        "VCSOUP_TAKEOVER": f"{takeover():g}",  # of their leases, as of the driver's
    }
