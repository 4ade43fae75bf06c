"""The work folder of a merge: which merge it is of, and who may write there.

    OUT.partial/folder.lock         held by whoever enters, looks whether all is done, publishes or
                                    removes the folder: one process at a time
    OUT.partial/merge.json          which merge it is of
    OUT.partial/rank-*.lock         one writer for each rank
    OUT.partial/rank-*.journal      which chunks are done; see journal.py
    OUT.partial/soups/<name>/       soups while they are written

A killed process holds none of the locks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import (
    DISK_FULL,
    GONE,
    KEPT_OPEN,
    remove_leftovers,
    write_atomically,
    write_error,
)
from vcsoup_dist.locks import EXCLUSIVE, Lock, remove_lock
from vcsoup_dist.souping.options import MergeOptions

RECORD_NAME = "merge.json"
LOCK_NAME = "folder.lock"


class WorkRecord(NamedTuple):
    """Which merge a work folder is of."""

    fingerprint: str
    soups: tuple[str, ...]


@contextmanager
def locked(work: Path, *, make: bool) -> Iterator[bool]:
    """Hold the lock of a work folder; waits for it.

    make: make the folder if need be; without it the block gets False where there is none.
    """
    lock = _take_lock(work, make)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.close()


def read_record(work: Path) -> WorkRecord | None:
    """What the folder is of; None for a new one. UserError where it is of something else."""
    try:
        content = json.loads((work / RECORD_NAME).read_bytes())
        return WorkRecord(str(content["fingerprint"]), tuple(map(str, content["soups"])))
    except FileNotFoundError:
        remove_leftovers(work)
        others = sorted(
            each.name
            for each in work.iterdir()
            if ".lock" not in each.name and not each.name.startswith(KEPT_OPEN)
        )
        if others:
            raise UserError(
                f"{work}: is in the way and not of a merge (it holds {others[0]!r}); move it away"
            ) from None
        return None
    except OSError as error:  # nothing is known of what is there
        reason = UserError(f"{work / RECORD_NAME}: cannot be read: {error.strerror}")
        raise write_error(error, work / RECORD_NAME) or reason from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{work / RECORD_NAME}: is damaged ({error}); remove {work}") from None


def write_record(work: Path, record: WorkRecord) -> None:
    """Say which merge the folder is of from now on."""
    write_atomically(work / RECORD_NAME, json.dumps(record._asdict()) + "\n")


def clear(work: Path) -> None:
    """Remove all but the lock; the record last, so that a kill leaves a folder that is known."""
    shutil.rmtree(work / "soups", ignore_errors=True)
    for path in [*work.glob("rank-*.journal"), *work.glob("rank-*.lock"), work / RECORD_NAME]:
        remove_lock(path)


def remove(work: Path) -> None:
    """Remove the folder. Whoever waits for its lock finds it gone, or makes it again."""
    clear(work)
    for path in work.glob("*.lock"):
        remove_lock(path)
    with suppress(OSError):  # somebody has entered it already
        work.rmdir()


def lost(work: Path) -> UserError:
    return UserError(
        f"{work}: was removed, emptied or replaced while it was written to, so the soups are lost;"
        " run the same command again, it starts over"
    )


@contextmanager
def explain_lost_files(work: Path) -> Iterator[None]:
    """UserError for a file that is gone from the work folder: no defect of this project."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        if not error.filename or work not in Path(os.fsdecode(error.filename)).parents:
            raise
        raise lost(work) from error


@contextmanager
def explain_lost_disk(work: Path) -> Iterator[None]:
    """UserError for a full disk, and for a file system that is out of reach."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*DISK_FULL, *GONE):
            raise
        raise write_error(error, work) or error from error


@contextmanager
def rank_lock(work: Path, options: MergeOptions) -> Iterator[None]:
    """Hold the lock of a rank while the block runs; taken with the folder's lock held.

    UserError where another process holds it, or works as one of another number of ranks.
    """
    rank, world_size = options.rank, options.world_size
    own = work / f"rank-{rank:05d}-of-{world_size:05d}.lock"
    for path in work.glob("rank-*.lock"):
        same_world = path.name.endswith(f"-of-{world_size:05d}.lock")
        if path != own and not same_world and (who := _writer(path)):
            raise UserError(
                f"{work}: another process merges there as one of another number of ranks ({who});"
                " wait for it, or give the same --world-size"
            )
    with Lock(own) as lock:
        if not lock.take(EXCLUSIVE):
            raise UserError(
                f"{work}: another process writes there ({lock.signature()}); wait for it"
            )
        lock.sign(f"rank {rank} of {world_size}, " if world_size > 1 else "")
        yield


def active_writers(work: Path) -> list[str]:
    """Who works in the folder: `pid 7 on host`, with several ranks `rank 1 of 4, pid 7 on host`."""
    return [who for path in sorted(work.glob("rank-*.lock")) if (who := _writer(path))]


def _writer(path: Path) -> str:
    """Who holds a rank's lock. It is taken: only that tells an ended process on another host."""
    with Lock(path) as lock:
        return "" if lock.take(EXCLUSIVE) else path.read_text().strip()


def _take_lock(work: Path, make: bool) -> Lock | None:
    """The held lock; None without a folder."""
    path = work / LOCK_NAME
    while True:
        try:
            if make:
                work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{work}: cannot be made: {error.strerror}") from None
        try:
            lock = Lock(path)
        except FileNotFoundError:
            if make:
                continue  # it was removed a moment ago
            return None
        except OSError as error:
            raise UserError(f"{work}: cannot be written: {error.strerror}") from None
        with suppress(FileNotFoundError):  # it was removed while we waited
            lock.take(EXCLUSIVE, timeout=None)
            if os.path.samestat(os.fstat(lock.file.fileno()), os.stat(path)):
                return lock
        lock.close()
