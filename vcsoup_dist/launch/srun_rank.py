"""One task of a Slurm step as a rank: `python -P -m vcsoup_dist.launch.srun_rank MODULE JOB`.

Gives MODULE the environment that `ranks.py` promises, from Slurm's. The parent with which the rank
dies is slurmstepd. The signals that ask to stop are blocked when this starts.
"""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

from vcsoup_dist.launch.interfaces import interface_to
from vcsoup_dist.launch.shared_files import trouble_with, trouble_with_locks

UNSEEN = "vcsoup: unseen: "
"""How the line of a task begins that does not see the log folder."""

UNLOCKED = "vcsoup: unlocked: "
"""How the line of a task begins that does not see the launcher's locks there."""

DONE = "vcsoup-rank-done "


def main() -> None:
    """Become rank SLURM_PROCID and run MODULE, where this node sees the log folder."""
    if trouble := trouble_with(os.environ["VCSOUP_SHARED_FILE"]):
        print(f"{UNSEEN}{os.environ['SLURMD_NODENAME']}: {trouble}", file=sys.stderr)
        sys.exit(2)
    if trouble := trouble_with_locks(os.environ["VCSOUP_SHARED_FILE"]):
        print(f"{UNLOCKED}{os.environ['SLURMD_NODENAME']}: {trouble}", file=sys.stderr)
    rank = os.environ["SLURM_PROCID"]
    node = int(os.environ["SLURM_NODEID"])
    os.environ |= {
        "RANK": rank,
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": os.environ["SLURM_NTASKS"],
        "LOCAL_WORLD_SIZE": str(tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])[node]),
        "VCSOUP_LAUNCHER": str(os.getppid()),
    }
    _choose_network(node)
    logs = Path(os.environ["VCSOUP_LOGS"])
    # Rank 0 speaks to the terminal, the others to their own files.
    output = os.open(
        os.devnull if rank == "0" else logs / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT, 0o666
    )
    srun = os.dup(2)
    os.environ["VCSOUP_MESSAGES"] = str(srun)
    os.dup2(output, 1)
    if rank != "0":
        os.dup2(output, 2)
    (logs / f"rank-{rank}.up").touch()
    module = sys.argv.pop(1)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code not in (None, 0):
            raise
    # srun's own exit code is 0 also where it gave up waiting for us.
    os.write(srun, f"{DONE}{rank}\n".encode())


def _choose_network(node: int) -> None:
    """Have gloo use the interface that leads to the other nodes, unless a person has chosen one.

    It would take the one of the host's own name, which is 127.0.1.1 on a usual Debian. NCCL looks
    for a network itself.
    """
    first, last = os.environ["VCSOUP_PEERS"].split()
    if interface := interface_to(last if node == 0 else first):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def tasks_per_node(text: str) -> list[int]:
    """Tasks of every node of a step in Slurm's short form, such as `4(x2),3`."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


if __name__ == "__main__":
    main()
