"""Training ranks on the nodes of a Slurm job: one `srun` step with one task per rank.

The contract is that of `ranks.py`. The command runs inside the job, as a rule in its batch script
on the first node; every task is `srun_rank.py`, which takes its place among the ranks from Slurm.
A request to stop is handed on through srun, once the ranks can act on it; `scancel --signal=USR2`
and sbatch's `--signal=USR2@N` reach them without this command. A task that does not see the log
folder cannot leave anything there: it says so on its stderr, which srun hands to this command.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from vcsoup_dist.errors import EXIT_PREEMPTED, Preempted, UserError
from vcsoup_dist.launch.interfaces import interface_to
from vcsoup_dist.launch.rank_logs import (
    RANK_ERROR,
    clear_rank_logs,
    raise_rank_error,
    what_failed,
)
from vcsoup_dist.launch.shared_files import token
from vcsoup_dist.launch.slurm_output import lines_of
from vcsoup_dist.launch.srun_rank import DONE, UNLOCKED, UNSEEN
from vcsoup_dist.launch.stop_signals import (
    RANK_SIGNALS,
    forward_stop_signals,
    raise_if_stop_requested,
    stop_signal,
)
from vcsoup_dist.processes import die_with_parent
from vcsoup_dist.progress import log

GRACE = 30  # seconds for the other ranks to end, in whatever way, after the first
KILLED_BY_REQUEST = 128 + signal.SIGUSR2

# Such as `srun: error: n2: tasks 2-3: Killed`.
TASK_ENDED = re.compile(rb"srun: error: (\S+): tasks? (\d+)[\d,-]*: (.+)")
UNLOCKED_LINE = re.compile(rf"{UNLOCKED}(\S+): (.+)".encode())
UNSEEN_LINE = re.compile(rf"{UNSEEN}(\S+): (.+)".encode())
RANK_DONE = re.compile(rf"{DONE}(\d+)\n".encode())
STOPPED = f"Exited with exit code {EXIT_PREEMPTED}"


def run_on_slurm(module: str, job: Path, threads: int, logs: Path) -> None:
    """Run as many processes as the Slurm job has tasks, and wait for all.

    Raises UserError with the failed rank's own line, or with the end of what it left, or where a
    node does not see the log folder; Preempted where the ranks saved and stopped on request, or the
    request came before.
    """
    raise_if_stop_requested()
    ranks = tasks_of_job()
    clear_rank_logs(logs)
    addresses = _addresses_of_nodes()
    environment = {
        **os.environ,
        "MASTER_ADDR": addresses[0],
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads),
        "VCSOUP_PEERS": f"{addresses[0]} {addresses[-1]}",
        "VCSOUP_LOGS": str(logs),
        "VCSOUP_BEGAN": os.environ.get("VCSOUP_BEGAN", str(time.time())),
    }
    network = os.environ.get("GLOO_SOCKET_IFNAME") or interface_to(addresses[-1])
    log.info(
        "starting %d rank%s, the tasks of Slurm job %s, on %s%s",
        *(ranks, "" if ranks == 1 else "s"),
        *(os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_NODELIST"]),
        f"; gloo uses {network} here" if network else "",
    )
    # By its name `clear_rank_logs` removes what a killed command leaves.
    with token(logs, "rank-sees") as file:
        environment["VCSOUP_SHARED_FILE"] = str(file)
        _run_step(srun_command(ranks, module, job), environment, ranks, logs)


def _run_step(command: list[str], environment: dict[str, str], ranks: int, logs: Path) -> None:
    launcher = os.getpid()
    too_early = False
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, RANK_SIGNALS)
        # srun answers SIGTERM by ending the step on all nodes. A terminal's Ctrl-C and hang-up
        # would end it too, and are this command's to take.
        step = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
            preexec_fn=lambda: _become_srun(launcher),
        )

        def forward(number: int) -> None:
            nonlocal too_early
            if step.poll() is not None:
                return
            if len(list(logs.glob("rank-*.up"))) == ranks:
                step.send_signal(signal.SIGUSR2)
            else:  # srun would drop it, or it would kill a rank; nothing is there to save yet
                if not too_early:
                    threading.Thread(target=_terminate, args=(step,), daemon=True).start()
                too_early = True

        try:
            with forward_stop_signals(forward):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, RANK_SIGNALS)
                said = _pass_on(step)
                code = step.wait()
        finally:
            if step.poll() is None:  # the command was interrupted
                step.terminate()
                step.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RANK_SIGNALS)
    if code and too_early:
        raise Preempted(stop_signal())
    if said.unseen:
        mounts = "; VCSOUP_CONTAINER must mount it" if os.environ.get("VCSOUP_CONTAINER") else ""
        trouble = next(iter(said.unseen.values()))
        raise UserError(f"launcher srun: on {', '.join(sorted(said.unseen))}: {trouble}{mounts}")
    if code:
        raise_rank_error(logs, said.words)
        _explain(code, said.failed, logs)
    if len(said.done) < ranks:  # srun gave up waiting for a step that Slurm has ended, with 0
        raise_rank_error(logs)
        raise_if_stop_requested()
        raise UserError(
            f"Slurm ended the step before its ranks did ({len(said.done)} of {ranks} were done); "
            "the same command resumes"
        )


def _terminate(step: subprocess.Popen[bytes]) -> None:
    """Ask srun to end the step until it has: it may lose a signal that comes as it starts."""
    while step.poll() is None:
        step.terminate()
        time.sleep(1)


def _become_srun(launcher: int) -> None:
    die_with_parent(launcher, signal.SIGTERM)
    # Where it inherits SIGTERM blocked, one that comes as it starts may be lost (srun 22.05).
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def tasks_of_job() -> int:
    """Ranks that the Slurm job has room for: its tasks, or one per node."""
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError("launcher srun: no Slurm job here; use `sbatch slurm/…` or `salloc`")
    nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    ranks = int(os.environ.get("SLURM_NTASKS", nodes))
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
    if gpus * nodes > ranks:
        log.warning(
            "%d GPUs on a node, but %d ranks on %d nodes: give sbatch --ntasks-per-node=%d",
            *(gpus, ranks, nodes, gpus),
        )
    return ranks


def srun_command(ranks: int, module: str, job: Path) -> list[str]:
    """The command of a step of `ranks` tasks.

    VCSOUP_CONTAINER: options for srun that put the tasks into a container, in which `python3` has
    this package.
    """
    container = shlex.split(os.environ.get("VCSOUP_CONTAINER", ""))
    python = "python3" if container else sys.executable
    command = [
        "srun",
        f"--ntasks={ranks}",
        "--distribution=block",  # ranks of a node follow each other
        # A rank that stopped on request or dumps its stack must not have its peers killed at once.
        "--kill-on-bad-exit=0",
        f"--wait={GRACE}",
        "--export=ALL",  # also under `sbatch --export=NONE`
        "--gpu-bind=none",  # every rank sees its node's GPUs and takes that of its LOCAL_RANK
    ]
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):  # srun no longer takes it from the job
        command.append(f"--cpus-per-task={cpus}")
    # Until a rank can act on them the signals wait; the default is to die.
    names = ",".join(each.name.removeprefix("SIG") for each in RANK_SIGNALS)
    # Without -P a rank would import what lies in the working directory.
    task = ["env", f"--block-signal={names}", python, "-P", "-m", "vcsoup_dist.launch.srun_rank"]
    return [*command, *container, *task, module, str(job)]


@dataclass
class _Said:
    """What came by srun's stderr."""

    failed: tuple[int, str] | None = None
    """The rank that failed first, and how."""
    unseen: dict[str, str] = field(default_factory=dict)
    """Node -> its trouble with the log folder."""
    unlocked: bool = False
    """Whether a node does not see this one's locks."""
    done: set[int] = field(default_factory=set)
    """The ranks that came to their end."""
    words: str = ""
    """Lines of ranks that could not leave them in the log folder."""


def _pass_on(step: subprocess.Popen[bytes]) -> _Said:
    """Show what rank 0 and srun say until srun ends; a node in trouble ends the step."""
    assert step.stderr is not None
    said = _Said()
    for line in step.stderr:
        if found := RANK_DONE.search(line):
            said.done.add(int(found[1]))
            line = line[: found.start()]  # what rank 0 has left without a line's end
            if not line:
                continue
        if line.startswith(RANK_ERROR.encode()):
            said.words += line.decode(errors="replace")
            continue
        if found := UNSEEN_LINE.search(line):
            node, trouble = (each.decode(errors="replace") for each in found.groups())
            said.unseen[node] = trouble
            step.terminate()
            continue
        if found := UNLOCKED_LINE.search(line):
            node, trouble = (each.decode(errors="replace") for each in found.groups())
            if not said.unlocked:  # every rank says it
                log.warning("on %s: %s", node, trouble)
            said.unlocked = True
            continue
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        if said.failed is None and (found := TASK_ENDED.match(line)):
            node, rank, reason = (each.decode(errors="replace") for each in found.groups())
            if reason != STOPPED:
                said.failed = int(rank), f"on {node} ended: {reason.lower()}"
    return said


def _explain(code: int, ended: tuple[int, str] | None, logs: Path) -> None:
    if code == KILLED_BY_REQUEST:  # one that came before a rank could act on it
        raise Preempted(stop_signal())
    # srun's code is the highest of its tasks', and another may have failed with a lower one.
    if code == EXIT_PREEMPTED and ended is None:
        raise Preempted(stop_signal())
    if ended is None:
        raise UserError(f"srun ended with {code}; what it said stands above")
    rank, how = ended
    raise UserError(what_failed(rank, how, logs))


def _addresses_of_nodes() -> list[str]:
    """Where Slurm itself reaches the nodes of the job; first the first one, where rank 0 is."""
    # Not by `scontrol show hostnames`, whose names look like any word that a site may print.
    nodes = os.environ["SLURM_JOB_NODELIST"]
    command = ["scontrol", "show", "node", nodes, "--oneliner"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    found = []
    for line in lines_of(done.stdout):
        if name := re.match(r"NodeName=(\S+)", line):
            address = re.search(r" NodeAddr=(\S+)", line)
            found.append(address[1] if address else name[1])
    if found:
        return found
    said = " ".join(f"{done.stderr} {done.stdout}".split())[:300] or "nothing"
    raise UserError(f"{' '.join(command)}: named no node, but said: {said}")


def _free_port() -> int:
    """A port that is free here, in a batch script where rank 0 will be."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
