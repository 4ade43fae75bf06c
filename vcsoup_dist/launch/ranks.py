"""Training ranks on this machine, by torch.distributed's environment contract.

A rank is `python -m MODULE JOB` with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR,
MASTER_PORT and OMP_NUM_THREADS set. It calls `die_with_parent` first, so that no rank outlives its
launcher even by SIGKILL, and reports a UserError by writing `rank-<r>.error` into the log folder.
Rank 0 speaks to the terminal, the others to `rank-<r>.log`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from vcsoup_dist.errors import UserError

TAIL = 15  # lines of a failed rank's log that are shown
GRACE = 10.0  # seconds between SIGTERM and SIGKILL


def run_ranks(module: str, job: Path, ranks: int, threads: int, logs: Path) -> None:
    """Run `ranks` processes and wait for all; the first that fails ends the others.

    Raises UserError with the failed rank's own line, or with the tail of its log.
    """
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("rank-*"):
        old.unlink()
    processes: list[subprocess.Popen[bytes]] = []
    common = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads),
        "VCSOUP_LOGS": str(logs),
        "VCSOUP_LAUNCHER": str(os.getpid()),
    }
    try:
        for rank in range(ranks):
            environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with open(os.devnull if rank == 0 else logs / f"rank-{rank}.log", "wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module, str(job)],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=None if rank == 0 else log,
                    )
                )
        _wait(processes, logs)
    finally:
        _end(processes)


def report_user_error(error: UserError) -> None:
    """In a rank: hand the launcher the line that a person should read."""
    path = Path(os.environ["VCSOUP_LOGS"]) / f"rank-{os.environ['RANK']}.error"
    path.write_text(str(error))


def _wait(processes: list[subprocess.Popen[bytes]], logs: Path) -> None:
    while any(process.poll() is None for process in processes):
        if any(process.returncode for process in processes):
            break
        time.sleep(0.05)
    failed = [rank for rank, process in enumerate(processes) if process.returncode]
    if not failed:
        return
    # The cause may come a moment after its effect on another rank's connection.
    time.sleep(1)
    told = sorted(logs.glob("rank-*.error"))
    if told:
        raise UserError(told[0].read_text())
    rank = failed[0]
    code = processes[rank].returncode
    reason = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    if rank == 0:
        raise UserError(f"rank 0 ended {reason}; its own words stand above")
    tail = (logs / f"rank-{rank}.log").read_text(errors="replace").splitlines()[-TAIL:]
    raise UserError("\n".join([f"rank {rank} ended {reason}; its last lines:", *tail]))


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
