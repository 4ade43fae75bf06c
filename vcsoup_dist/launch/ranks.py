"""Training ranks on this machine, by torch.distributed's environment contract.

A rank is `python -m MODULE JOB` with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR,
MASTER_PORT and OMP_NUM_THREADS set. It calls `die_with_parent` first, so that no rank outlives its
launcher even by SIGKILL, and leaves in the log folder `rank-<r>.error` for a UserError,
`rank-<r>.traceback` for any other, `rank-<r>.stack` when it hangs. Rank 0 speaks to the terminal,
the others to `rank-<r>.log`. SIGTERM and SIGUSR2 to the launcher are handed on to the ranks, which
stop at their next step boundary and exit with `EXIT_PREEMPTED`; they start with both blocked, until
they can act on them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vcsoup_dist.errors import EXIT_PREEMPTED, Preempted, UserError

TAIL = 15  # lines of a failed rank's log that are shown
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
GRACE = 10.0  # seconds for the other ranks to end in the same way as the first


def run_ranks(module: str, job: Path, ranks: int, threads: int, logs: Path) -> None:
    """Run `ranks` processes and wait for all; the first that fails ends the others.

    Raises UserError with the failed rank's own line, or with the end of what it left; Preempted
    where the ranks saved and stopped on request, or the request came before.
    """
    stop_if_asked()
    begin_logs(logs)
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
        "VCSOUP_BEGAN": os.environ.get("VCSOUP_BEGAN", str(time.time())),
    }

    def hand_on(number: int) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
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
        with handing_on(hand_on):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            _wait(processes, logs)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        for process in processes:
            if process.poll() is None:  # its peers are gone, so nothing that it does is of use
                process.kill()
            process.wait()


def begin_logs(logs: Path) -> None:
    """Make the log folder of a launch, without what the ranks of the last one left."""
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("rank-*"):
        old.unlink()


def stop_if_asked(max_minutes: float | None = None) -> None:
    """Raise Preempted where a request came that no rank could act on, or the time is over.

    For a command between two pieces of work. The time counts from VCSOUP_BEGAN.
    """
    began = float(os.environ.get("VCSOUP_BEGAN", time.time()))
    if _asked or (max_minutes is not None and time.time() > began + 60 * max_minutes):
        raise Preempted


def report_user_error(error: UserError) -> None:
    """In a rank: hand the launcher the line that a person should read."""
    path = Path(os.environ["VCSOUP_LOGS"]) / f"rank-{os.environ['RANK']}.error"
    try:
        path.write_text(str(error))
    except OSError:  # such as a full disk, which may be what it says
        print(error, file=sys.stderr)


_asked = False


@contextmanager
def handing_on(hand_on: Callable[[int], None]) -> Iterator[None]:
    """While this is open, `hand_on` takes requests to stop to the ranks, by the signal's number."""

    def asked(number: int, frame: FrameType | None) -> None:
        global _asked
        _asked = True
        hand_on(number)

    before = {each: signal.signal(each, asked) for each in STOP_SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]], logs: Path) -> None:
    first: list[int] = []
    while None in (codes := [process.poll() for process in processes]):
        first = [rank for rank, code in enumerate(codes) if code]
        if first:
            # Those that stop or hang do so together; a cause may come after its effect on another.
            _linger(processes, 1.0)
            if codes[first[0]] == EXIT_PREEMPTED or _stacks(logs):
                _linger(processes, GRACE)
            break
        time.sleep(0.05)
    codes = [process.poll() for process in processes]
    if not any(codes):
        return
    raise_what_ranks_said(logs)
    if set(codes) == {EXIT_PREEMPTED}:
        raise Preempted
    failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, EXIT_PREEMPTED)]
    if not failed:
        raise UserError(f"ranks ended with {codes}: some did not stop with the others")
    # The first that failed is the cause, and its peers' broken connections the effect.
    rank = next((each for each in failed if each in first), failed[0])
    code = codes[rank] or 0
    reason = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    raise UserError(last_words(rank, f"ended {reason}", logs))


def raise_what_ranks_said(logs: Path) -> None:
    """Raise UserError where a rank left a line for a person, or was ended because it hung."""
    told = [path.read_text() for path in sorted(logs.glob("rank-*.error")) if path.stat().st_size]
    if told:
        raise UserError(told[0])
    if stacks := _stacks(logs):
        raise UserError(
            "a training step took longer than launch.hang_minutes; where each rank was stands in "
            f"{', '.join(str(each) for each in stacks)}"
        )


def last_words(rank: int, ended: str, logs: Path) -> str:
    """How a rank ended, and the end of what it left."""
    for kind in ("traceback", "log"):
        file = logs / f"rank-{rank}.{kind}"
        if file.exists() and (tail := file.read_text(errors="replace").splitlines()[-TAIL:]):
            return "\n".join([f"rank {rank} {ended}; the end of {file}:", *tail])
    return f"rank {rank} {ended}"


def _linger(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while None in [process.poll() for process in processes] and time.monotonic() < deadline:
        time.sleep(0.05)


def _stacks(logs: Path) -> list[Path]:
    return [path for path in sorted(logs.glob("rank-*.stack")) if path.stat().st_size]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
