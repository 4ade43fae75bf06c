"""Training ranks on this machine, by torch.distributed's environment contract.

A rank is `python -P -m MODULE JOB` with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE,
MASTER_ADDR, MASTER_PORT and OMP_NUM_THREADS set. It calls `die_with_parent` first, so that no rank
outlives its launcher even by SIGKILL. Rank 0 writes to the terminal, the others to `rank-<r>.log`;
for what else they leave see `rank_logs`. The launcher forwards signals that ask to stop to the
ranks, which stop at their next step boundary and exit with `EXIT_PREEMPTED`; they start with these
signals blocked, until they can act on them. A terminal sends its Ctrl-C to the ranks as well, who
take it as the same request.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, Popen

from vcsoup_dist.errors import EXIT_PREEMPTED, Preempted, UserError
from vcsoup_dist.import_paths import python_path
from vcsoup_dist.launch.rank_logs import (
    clear_rank_logs,
    raise_rank_error,
    stacks_of_hung_ranks,
    what_failed,
)
from vcsoup_dist.launch.stop_signals import (
    RANK_SIGNALS,
    forward_stop_signals,
    raise_if_stop_requested,
    stop_signal,
)
from vcsoup_dist.progress import clear_bar

HANDED_OUT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
GRACE = 10.0  # seconds for the other ranks to end in the same way as the first


def run_ranks(module: str, job: Path, ranks: int, threads: int, logs: Path) -> None:
    """Run `ranks` processes and wait for all; the first that fails ends the others.

    Raises UserError with the failed rank's own line, or with the tail of its log; Preempted
    where the ranks saved and stopped on request, or the request came before.
    """
    raise_if_stop_requested()
    clear_rank_logs(logs)
    messages = os.memfd_create("rank-messages")  # of ranks that meet a full disk
    processes: list[Popen[bytes]] = []
    common = {
        **os.environ,
        "PYTHONPATH": python_path(),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads),
        "VCSOUP_LOGS": str(logs),
        "VCSOUP_MESSAGES": str(messages),
        "VCSOUP_LAUNCHER": str(os.getpid()),
        "VCSOUP_BEGAN": os.environ.get("VCSOUP_BEGAN", str(time.time())),
    }

    def forward(number: int) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, RANK_SIGNALS)
        for rank in range(ranks):
            environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with open(os.devnull if rank == 0 else logs / f"rank-{rank}.log", "wb") as log:
                processes.append(
                    Popen(
                        # Without -P a rank would import what lies in the working directory.
                        [sys.executable, "-P", "-m", module, str(job)],
                        env=environment,
                        pass_fds=[messages],
                        stdin=DEVNULL,
                        stdout=log,
                        stderr=None if rank == 0 else log,
                    )
                )
        with forward_stop_signals(forward):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, RANK_SIGNALS)
            _wait(processes, logs, messages)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RANK_SIGNALS)
        for process in processes:
            if process.poll() is None:  # its peers are gone, so nothing that it does is of use
                process.kill()
            process.wait()
        clear_bar()
        os.close(messages)


def _wait(processes: Sequence[Popen[bytes]], logs: Path, messages: int) -> None:
    first: list[int] = []
    while None in (codes := [process.poll() for process in processes]):
        first = [rank for rank, code in enumerate(codes) if code]
        if first:
            # Those that stop or hang do so together; a cause may come after its effect on another.
            _linger(processes, 1.0)
            if codes[first[0]] == EXIT_PREEMPTED or stacks_of_hung_ranks(logs):
                _linger(processes, GRACE)
            break
        time.sleep(0.05)
    codes = [process.poll() for process in processes]
    if not any(codes):
        return
    written = os.pread(messages, os.fstat(messages).st_size, 0).decode(errors="replace")
    raise_rank_error(logs, written)
    if set(codes) == {EXIT_PREEMPTED}:
        raise Preempted(stop_signal())
    failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, EXIT_PREEMPTED)]
    if not failed:
        raise UserError(f"ranks ended with {codes}: some did not stop with the others")
    # The first that failed is the cause, and its peers' broken connections the effect. Of several
    # it is one that was killed, which no broken connection does.
    rank = min(failed, key=lambda each: (codes[each] != -signal.SIGKILL, each not in first))
    code = codes[rank] or 0
    reason = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    raise UserError(what_failed(rank, f"ended {reason}", logs))


def _linger(processes: Sequence[Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while None in [process.poll() for process in processes] and time.monotonic() < deadline:
        time.sleep(0.05)


def _free_port() -> int:
    """A port that stays free until rank 0 listens on it.

    It is below those that the system hands out, of which another program could be given it
    meanwhile. Only where none of 20 is free is it one of these.
    """
    handed_out = int(HANDED_OUT_PORTS.read_text().split()[0])
    ports = [secrets.randbelow(10_000) + handed_out - 10_000 for _ in range(20)]
    for port in (*(each for each in ports if each >= 10_000), 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise UserError("launch: no port is free on this machine; end some of its programs")
