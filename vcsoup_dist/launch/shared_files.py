"""Whether another node sees the files of this one, and its locks, as a small file shows.

Its name is new every time, so that no node can have an old one, or remember that it was not there.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from vcsoup_dist.file_systems import file_system
from vcsoup_dist.lease_files import takeover
from vcsoup_dist.locks import EXCLUSIVE, flock

LEFT_BEHIND = 3600.0  # seconds; nobody reads a token that is so old
PATIENCE = 5.0  # seconds; a network file system may show a new file late


@contextlib.contextmanager
def token(folder: Path, prefix: str) -> Iterator[Path]:
    """A file in `folder` for the block, and a lock of it.

    Another node tells by `trouble_with` whether it sees the file, and by `trouble_with_locks`
    whether it sees the lock.

    Removes those that killed commands have left there.
    """
    for old in folder.glob(f"{prefix}-*"):
        with contextlib.suppress(FileNotFoundError):  # another command was faster
            if old.stat().st_mtime < time.time() - LEFT_BEHIND:
                old.unlink()
    nonce = uuid.uuid4().hex
    path = folder.absolute() / f"{prefix}-{nonce}"
    try:
        with open(path, "w") as file:
            file.write(nonce)
            file.flush()
            flock(file, EXCLUSIVE, None)
            yield path
    finally:
        path.unlink(missing_ok=True)


def trouble_with(path: str) -> str:
    """Why this process cannot read the token at `path`, and what to do; empty where it can."""
    file = Path(path)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if file.read_text() == file.name.rpartition("-")[2]:
                return ""
            reason = "a file of it is empty"
        except OSError as error:
            reason = str(error.strerror)
        if time.monotonic() > deadline:
            return (
                f"{file.parent} is not the folder that the command sees ({reason}); the run "
                "directory must be on a POSIX file system that all nodes share, at the same path: "
                "choose another with --run-dir"
            )
        time.sleep(0.2)


def trouble_with_locks(path: str) -> str:
    """Why locks do not hold between the process that made the token and this one; empty where they
    do."""
    with open(path, "r+") as file:
        taken = flock(file, EXCLUSIVE, time.monotonic())
    if taken is False:
        return ""
    kind = file_system(Path(path)) or "its file system"
    how = "has no locks" if taken is None else "locks on each node alone"
    return (
        f"{Path(path).parent}: {kind} {how}; leases are used in their place: what a lost node was "
        f"making is taken over after {takeover():.0f} s"
    )
