"""What ranks leave in the log folder of a launch, and the error that the launcher makes of it.

`rank-<r>.error` is a UserError's line, `rank-<r>.traceback` any other exception's traceback,
`rank-<r>.stack` where the rank hung, `rank-<r>.log` its output.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path

from vcsoup_dist.errors import UserError

TAIL = 15  # lines of a failed rank's log that are shown
LOST_PEER = re.compile(
    r"Connection (?:closed|reset) by peer(?: \[\S+\]:\d+)?"
    r"|Connection was likely closed|ncclRemoteError"
)
"""As gloo, PyTorch's store and NCCL say it."""
RANK_ERROR = "vcsoup-rank-error "
"""How the line of a rank begins that could not write it into the log folder."""


def clear_rank_logs(logs: Path) -> None:
    """Make the log folder of a launch, without the files of the last launch."""
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("rank-*"):
        old.unlink()


def rank_log(kind: str) -> Path:
    """In a rank: its own file of a kind, such as "stack", in the log folder."""
    return Path(os.environ["VCSOUP_LOGS"]) / f"rank-{os.environ['RANK']}.{kind}"


def report_traceback() -> None:
    """In a rank: hand the launcher the traceback of the exception that is being handled."""
    text = traceback.format_exc()
    try:
        rank_log("traceback").write_text(text)
    except OSError:  # such as a full disk
        print(text, file=sys.stderr)


def report_user_error(error: UserError) -> None:
    """In a rank: hand the launcher the line that a person should read."""
    try:
        rank_log("error").write_text(str(error))
    except OSError:  # such as a full disk, which may be what the line says
        line = " ".join(str(error).split())
        print(line, file=sys.stderr)
        if handle := os.environ.get("VCSOUP_MESSAGES"):
            os.write(int(handle), f"{RANK_ERROR}{line}\n".encode(errors="replace"))


def raise_rank_error(logs: Path, messages: str = "") -> None:
    """Raise UserError where a rank left a line for a person, or was ended because it hung.

    messages: lines of ranks that could not write into the log folder.
    """
    lines = [path.read_text() for path in sorted(logs.glob("rank-*.error")) if path.stat().st_size]
    lines += [
        line.removeprefix(RANK_ERROR)
        for line in messages.splitlines()
        if line.startswith(RANK_ERROR)
    ]
    if lines:
        raise UserError(lines[0])
    if stacks := stacks_of_hung_ranks(logs):
        raise UserError(
            "a training step took longer than launch.hang_minutes; the stack of each rank is in "
            f"{', '.join(str(each) for each in stacks)}"
        )


def what_failed(rank: int, ended: str, logs: Path) -> str:
    """How a rank ended, and the tail of its traceback or log.

    Where it only lost another rank this names one that failed by itself, or the loss in a line.
    """
    if lost := _lost_peer(logs / f"rank-{rank}.traceback"):
        for file in sorted(logs.glob("rank-*.traceback")):
            if _lost_peer(file) is None:
                return _with_tail(f"{file.stem.replace('-', ' ')} failed", file)
        return (
            f"rank {rank} {ended}: it lost another rank ({lost}), which was killed, or whose host "
            f"or network is gone; the same command resumes; see {logs}"
        )
    for kind in ("traceback", "log"):
        file = logs / f"rank-{rank}.{kind}"
        if file.exists() and file.stat().st_size:
            return _with_tail(f"rank {rank} {ended}", file)
    return f"rank {rank} {ended}"


def _with_tail(what: str, file: Path) -> str:
    tail = file.read_text(errors="replace").splitlines()[-TAIL:]
    return "\n".join([f"{what}; the end of {file}:", *tail])


def _lost_peer(traceback: Path) -> str | None:
    """What a traceback says of a connection that another rank closed; None where it does not."""
    found = LOST_PEER.search(traceback.read_text(errors="replace")) if traceback.exists() else None
    return found[0] if found else None


def stacks_of_hung_ranks(logs: Path) -> list[Path]:
    """Stacks that the ranks' watchdogs wrote."""
    return [path for path in sorted(logs.glob("rank-*.stack")) if path.stat().st_size]
