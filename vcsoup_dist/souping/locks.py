"""One writer for each rank of a merge, and one world size at a time."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vcsoup_dist.errors import UserError


@contextmanager
def writing(folder: Path, rank: int, world_size: int) -> Iterator[None]:
    """Hold the lock of a rank in a work folder while the block runs.

    UserError where another process holds it, or works there as one of another number of ranks.
    A killed process holds nothing.
    """
    own = folder / f"rank-{rank:05d}-of-{world_size:05d}.lock"
    with _locked(folder / "door.lock"):
        for path in folder.glob("rank-*.lock"):
            same_world = path.name.endswith(f"-of-{world_size:05d}.lock")
            if path != own and not same_world and _is_held(path):
                raise UserError(
                    f"{folder}: another process merges there as one of another number of ranks"
                    f" ({path.read_text().strip()}); wait for it, or give the same --world-size"
                )
        descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"{folder}: another process writes there ({own.read_text().strip()}); wait for it"
            ) from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def finishing(folder: Path) -> Iterator[None]:
    """Hold the lock of the one that looks whether all is done, and publishes; waits for it.

    Waiting, the last of several ranks that end at the same time sees that all are done.
    FileNotFoundError where there is no such folder; it may be gone when the block begins.
    """
    with _locked(folder / "finish.lock"):
        yield


def others_write(folder: Path) -> bool:
    """Whether a process works in the folder as any rank, or publishes."""
    return any(_is_held(path) for path in [*folder.glob("rank-*.lock"), folder / "finish.lock"])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_held(path: Path) -> bool:
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
