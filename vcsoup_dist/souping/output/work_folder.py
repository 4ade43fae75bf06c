"""The work folder of a merge: which merge it is of, and who may write there.

    OUT.partial/door.lock           held by whoever enters, looks whether all is done, publishes or
                                    removes the folder: one process at a time
    OUT.partial/merge.json          which merge it is of
    OUT.partial/rank-*.lock         one writer for each rank
    OUT.partial/rank-*.journal      which chunks are done; see journal.py
    OUT.partial/soups/<name>/       soups while they are written

Locks are flock(2): a killed process holds none.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import remove_leftovers, write_atomically

RECORD_NAME = "merge.json"
DOOR_NAME = "door.lock"


class Record(NamedTuple):
    """Which merge a work folder is of."""

    fingerprint: str
    soups: tuple[str, ...]


@contextmanager
def door(work: Path, *, make: bool) -> Iterator[bool]:
    """Hold the door of a work folder; waits for it.

    make: make the folder if need be; without it the block gets False where there is none.
    """
    descriptor = _open_door(work, make)
    try:
        yield descriptor >= 0
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def read_record(work: Path) -> Record | None:
    """What the folder is of; None for a new one. UserError where it is of something else."""
    try:
        content = json.loads((work / RECORD_NAME).read_bytes())
        return Record(str(content["fingerprint"]), tuple(map(str, content["soups"])))
    except FileNotFoundError:
        remove_leftovers(work)
        others = sorted(each.name for each in work.iterdir() if each.name != DOOR_NAME)
        if others:
            raise UserError(
                f"{work}: is in the way and not of a merge (it holds {others[0]!r}); move it away"
            ) from None
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{work / RECORD_NAME}: is damaged ({error}); remove {work}") from None


def write_record(work: Path, record: Record) -> None:
    """Say which merge the folder is of from now on."""
    write_atomically(work / RECORD_NAME, json.dumps(record._asdict()) + "\n")


def clear(work: Path) -> None:
    """Remove all but the door; the record last, so that a kill leaves a folder that is known."""
    shutil.rmtree(work / "soups", ignore_errors=True)
    for path in [*work.glob("rank-*.journal"), *work.glob("rank-*.lock"), work / RECORD_NAME]:
        path.unlink(missing_ok=True)


def remove(work: Path) -> None:
    """Remove the folder. Whoever waits at its door finds it gone, or makes it anew."""
    clear(work)
    (work / DOOR_NAME).unlink(missing_ok=True)
    with suppress(OSError):  # somebody has entered it already
        work.rmdir()


@contextmanager
def writing(work: Path, rank: int, world_size: int) -> Iterator[None]:
    """Hold the lock of a rank while the block runs; taken with the door held.

    UserError where another process holds it, or works as one of another number of ranks.
    """
    own = _rank_lock(work, rank, world_size)
    for path in work.glob("rank-*.lock"):
        same_world = path.name.endswith(f"-of-{world_size:05d}.lock")
        if path != own and not same_world and _is_held(path):
            raise UserError(
                f"{work}: another process merges there as one of another number of ranks"
                f" ({path.read_text().strip()}); wait for it, or give the same --world-size"
            )
    descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{work}: another process writes there ({own.read_text().strip()}); wait for it"
            ) from None
        os.ftruncate(descriptor, 0)
        who = f"rank {rank} of {world_size}, " if world_size > 1 else ""
        who += f"pid {os.getpid()} on {socket.gethostname()}\n"
        os.pwrite(descriptor, who.encode(), 0)
        yield
    finally:
        os.close(descriptor)


def writers(work: Path) -> list[str]:
    """Who works in the folder: `pid 7 on host`, with several ranks `rank 1 of 4, pid 7 on host`."""
    return [path.read_text().strip() for path in sorted(work.glob("rank-*.lock")) if _is_held(path)]


def check_targets(work: Path, targets: Sequence[Path]) -> None:
    """UserError unless soups can be renamed from the work folder to their targets."""
    device = work.stat().st_dev
    for target in targets:
        parent = target.parent
        while not parent.exists():
            parent = parent.parent
        if os.path.ismount(target) or parent.stat().st_dev != device:
            raise UserError(
                f"{target}: is on another file system than {work}; give an --out whose parent"
                " folder is on the same one, such as a new folder in it"
            )
        if not os.access(parent, os.W_OK):
            raise UserError(f"{parent}: cannot be written; choose another --out")


def _open_door(work: Path, make: bool) -> int:
    """The descriptor of the locked door, -1 without a folder."""
    path = work / DOOR_NAME
    while True:
        try:
            if make:
                work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{work}: cannot be made: {error.strerror}") from None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            if make:
                continue  # it was just removed
            return -1
        except OSError as error:
            raise UserError(f"{work}: cannot be written: {error.strerror}") from None
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # it was removed while we waited


def _rank_lock(work: Path, rank: int, world_size: int) -> Path:
    return work / f"rank-{rank:05d}-of-{world_size:05d}.lock"


def _is_held(path: Path) -> bool:
    with open(path, "r+") as file:  # some file systems lock only what is open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
