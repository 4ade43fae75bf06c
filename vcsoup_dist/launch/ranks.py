"""Training ranks on this machine, by torch.distributed's environment contract.

A rank is `python -m MODULE JOB` with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR,
MASTER_PORT and OMP_NUM_THREADS set. It calls `die_with_parent` first, so that no rank outlives its
launcher even by SIGKILL, and reports a UserError by writing `rank-<r>.error` into the log folder.
Rank 0 speaks to the terminal, the others to `rank-<r>.log`. A rank that hangs leaves
`rank-<r>.stack`. SIGTERM and SIGUSR2 to the launcher are handed on to the ranks, which stop at
their next step boundary and exit with `EXIT_PREEMPTED`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vcsoup_dist.errors import EXIT_PREEMPTED, Preempted, UserError

TAIL = 15  # lines of a failed rank's log that are shown
BEGAN = time.time()  # of this command, for what has a limit of time
GRACE = 10.0  # seconds for the other ranks to end in the same way as the first


def run_ranks(module: str, job: Path, ranks: int, threads: int, logs: Path) -> None:
    """Run `ranks` processes and wait for all; the first that fails ends the others.

    Raises UserError with the failed rank's own line, or with the tail of its log; Preempted where
    the ranks saved and stopped on request.
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
        "VCSOUP_BEGAN": str(BEGAN),
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
        with _handing_on(processes):
            _wait(processes, logs)
    finally:
        for process in processes:
            if process.poll() is None:  # its peers are gone, so nothing that it does is of use
                process.kill()
            process.wait()


def report_user_error(error: UserError) -> None:
    """In a rank: hand the launcher the line that a person should read."""
    path = Path(os.environ["VCSOUP_LOGS"]) / f"rank-{os.environ['RANK']}.error"
    path.write_text(str(error))


@contextmanager
def _handing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """While this is open, requests to stop go to the ranks and not to this process."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {each: signal.signal(each, hand_on) for each in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]], logs: Path) -> None:
    while None in (codes := [process.poll() for process in processes]):
        if any(codes):
            # Those that stop or hang do so together; a cause may come after its effect on another.
            _linger(processes, 1.0)
            if _first_code(processes) == EXIT_PREEMPTED or _stacks(logs):
                _linger(processes, GRACE)
            break
        time.sleep(0.05)
    if not any([process.poll() for process in processes]):
        return
    told = sorted(logs.glob("rank-*.error"))
    if told:
        raise UserError(told[0].read_text())
    if stacks := _stacks(logs):
        raise UserError(
            "a training step took longer than launch.hang_minutes; where each rank was stands in "
            f"{', '.join(str(each) for each in stacks)}"
        )
    codes = [process.poll() for process in processes]
    if set(codes) == {EXIT_PREEMPTED}:
        raise Preempted("stopped on request; the same command goes on from here")
    # A rank that was killed is the cause, and its peers' broken connections the effect.
    failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, EXIT_PREEMPTED)]
    if not failed:
        raise UserError(f"ranks ended with {codes}: some did not stop with the others")
    rank = next((each for each in failed if (codes[each] or 0) < 0), failed[0])
    code = codes[rank] or 0
    reason = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    if rank == 0:
        raise UserError(f"rank 0 ended {reason}; its own words stand above")
    tail = (logs / f"rank-{rank}.log").read_text(errors="replace").splitlines()[-TAIL:]
    raise UserError("\n".join([f"rank {rank} ended {reason}; its last lines:", *tail]))


def _linger(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while None in [process.poll() for process in processes] and time.monotonic() < deadline:
        time.sleep(0.05)


def _first_code(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    return next((process.returncode for process in processes if process.returncode), None)


def _stacks(logs: Path) -> list[Path]:
    return [path for path in sorted(logs.glob("rank-*.stack")) if path.stat().st_size]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
