"""Training ranks on this machine, by torch.distributed's environment contract.

A rank is `python -P -m MODULE JOB` with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE,
MASTER_ADDR, MASTER_PORT and OMP_NUM_THREADS set. It calls `die_with_parent` first, so that no rank
outlives its launcher even by SIGKILL, and leaves in the log folder `rank-<r>.error` for a
UserError, `rank-<r>.traceback` for any other, `rank-<r>.stack` when it hangs. Rank 0 speaks to the
terminal, the others to `rank-<r>.log`. Signals that ask to stop are handed on to the ranks, which
stop at their next step boundary and exit with `EXIT_PREEMPTED`; they start with these blocked,
until they can act on them. A terminal sends its Ctrl-C to the ranks as well, who take it as the
same request.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vcsoup_dist.errors import EXIT_PREEMPTED, Preempted, UserError
from vcsoup_dist.launch.import_paths import python_path
from vcsoup_dist.progress import clear_bar

TAIL = 15  # lines of a failed rank's log that are shown
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
"""By which a command is asked to stop, wherever it is."""
RANK_SIGNALS = (*STOP_SIGNALS, signal.SIGINT)
"""By which ranks are: they save, where other work that is interrupted just ends."""
STOPPING = b"vcsoup: saving after this step, then it stops; Ctrl-C again ends it at once, unsaved\n"
SAID = "vcsoup-rank-said "
"""How the line of a rank begins that could not leave it in the log folder."""
GRACE = 10.0  # seconds for the other ranks to end in the same way as the first


def run_ranks(module: str, job: Path, ranks: int, threads: int, logs: Path) -> None:
    """Run `ranks` processes and wait for all; the first that fails ends the others.

    Raises UserError with the failed rank's own line, or with the end of what it left; Preempted
    where the ranks saved and stopped on request, or the request came before.
    """
    stop_if_asked()
    begin_logs(logs)
    said = os.memfd_create("ranks-said")  # for words that find no room on a disk
    processes: list[subprocess.Popen[bytes]] = []
    common = {
        **os.environ,
        "PYTHONPATH": python_path(),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads),
        "VCSOUP_LOGS": str(logs),
        "VCSOUP_SAID": str(said),
        "VCSOUP_LAUNCHER": str(os.getpid()),
        "VCSOUP_BEGAN": os.environ.get("VCSOUP_BEGAN", str(time.time())),
    }

    def hand_on(number: int) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, RANK_SIGNALS)
        for rank in range(ranks):
            environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with open(os.devnull if rank == 0 else logs / f"rank-{rank}.log", "wb") as log:
                processes.append(
                    subprocess.Popen(
                        # Without -P a rank would import what lies in the working directory.
                        [sys.executable, "-P", "-m", module, str(job)],
                        env=environment,
                        pass_fds=[said],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=None if rank == 0 else log,
                    )
                )
        with handing_on(hand_on):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, RANK_SIGNALS)
            _wait(processes, logs, said)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RANK_SIGNALS)
        for process in processes:
            if process.poll() is None:  # its peers are gone, so nothing that it does is of use
                process.kill()
            process.wait()
        clear_bar()
        os.close(said)


def heeded(signals: Sequence[signal.Signals]) -> list[signal.Signals]:
    """Those to obey: not a hang-up that `nohup` ignores, nor Ctrl-C in a script's background."""
    ignorable = (signal.SIGHUP, signal.SIGINT)
    return [
        each
        for each in signals
        if each not in ignorable or signal.getsignal(each) != signal.SIG_IGN
    ]


def leave_dead_terminal() -> None:
    """Say nothing more to a terminal that has hung up, where every word would be an error."""
    for handle in (1, 2):
        try:
            termios.tcgetattr(handle)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, handle)
                os.close(quiet)


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
        raise Preempted(_asked)


def report_user_error(error: UserError) -> None:
    """In a rank: hand the launcher the line that a person should read."""
    path = Path(os.environ["VCSOUP_LOGS"]) / f"rank-{os.environ['RANK']}.error"
    try:
        path.write_text(str(error))
    except OSError:  # such as a full disk, which may be what it says
        line = " ".join(str(error).split())
        print(line, file=sys.stderr)
        if handle := os.environ.get("VCSOUP_SAID"):
            os.write(int(handle), f"{SAID}{line}\n".encode(errors="replace"))


_asked: int | None = None
"""The signal that asked this command to stop while ranks ran."""


def asked_by() -> int | None:
    """The signal that ranks of this command were asked to stop by."""
    return _asked


@contextmanager
def handing_on(hand_on: Callable[[int], None]) -> Iterator[None]:
    """While this is open, `hand_on` takes requests to stop to the ranks, by the signal's number.

    A second SIGINT is none: it raises KeyboardInterrupt.
    """

    def asked(number: int, frame: FrameType | None) -> None:
        global _asked
        if number == signal.SIGHUP:
            leave_dead_terminal()
        if number == signal.SIGINT:
            if _asked == signal.SIGINT:
                raise KeyboardInterrupt
            clear_bar()  # rank 0 draws it anew below the line
            with contextlib.suppress(OSError):
                os.write(2, STOPPING)
        _asked = number
        hand_on(number)

    before = {each: signal.signal(each, asked) for each in heeded(RANK_SIGNALS)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]], logs: Path, said: int) -> None:
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
    words = os.pread(said, os.fstat(said).st_size, 0).decode(errors="replace")
    raise_what_ranks_said(logs, words)
    if set(codes) == {EXIT_PREEMPTED}:
        raise Preempted(_asked)
    failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, EXIT_PREEMPTED)]
    if not failed:
        raise UserError(f"ranks ended with {codes}: some did not stop with the others")
    # The first that failed is the cause, and its peers' broken connections the effect.
    rank = next((each for each in failed if each in first), failed[0])
    code = codes[rank] or 0
    reason = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    raise UserError(last_words(rank, f"ended {reason}", logs))


def raise_what_ranks_said(logs: Path, words: str = "") -> None:
    """Raise UserError where a rank left a line for a person, or was ended because it hung.

    words: what ranks said that could not leave it in the log folder, a line each.
    """
    told = [path.read_text() for path in sorted(logs.glob("rank-*.error")) if path.stat().st_size]
    told += [line.removeprefix(SAID) for line in words.splitlines() if line.startswith(SAID)]
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
