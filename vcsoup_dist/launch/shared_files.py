"""Whether another node sees the files of this one, as a small file shows that is there to be read.

Its name is new every time, so that no node can have an old one, or remember that it was not there.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

LEFT_BEHIND = 3600.0  # seconds; nobody reads a token that is so old
PATIENCE = 5.0  # seconds; a network file system may show a new file late


@contextlib.contextmanager
def token(folder: Path, prefix: str) -> Iterator[Path]:
    """A file in `folder` for the block; another node tells by `trouble_with` whether it sees it.

    Removes those that killed commands have left there.
    """
    for old in folder.glob(f"{prefix}-*"):
        with contextlib.suppress(FileNotFoundError):  # another command was faster
            if old.stat().st_mtime < time.time() - LEFT_BEHIND:
                old.unlink()
    nonce = uuid.uuid4().hex
    path = folder.absolute() / f"{prefix}-{nonce}"
    path.write_text(nonce)
    try:
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
