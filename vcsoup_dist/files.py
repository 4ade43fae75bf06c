"""Writing files so that a kill at any instant leaves the old state or the new one."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
from pathlib import Path

# Of renameat2(2), which Python's os module lacks.
_AT_FDCWD = -100
_EXCHANGE = 2


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write aside, fsync, rename: a reader sees the old file or the new one."""
    # A pid alone may be taken on another node, or in a container beside this one.
    aside = path.with_name(f".{path.name}.{os.getpid()}{secrets.randbelow(10**9):09}")
    with open(aside, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what `write_atomically` left below a folder when its process was killed."""
    for path in folder.rglob(".*"):
        if path.is_file() and path.suffix[1:].isdigit():
            path.unlink()


def sync(path: Path) -> None:
    """fsync a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """fsync all that is below a folder, and the folder."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step, so that both are there at every instant.

    False, with nothing done, where the system cannot: on macOS and on some network file systems.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p) * 2 + (ctypes.c_uint,)
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))
