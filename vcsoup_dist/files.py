"""Writing files so that a kill at any instant leaves the old state or the new one.

And what a disk that takes no more is called.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vcsoup_dist.errors import UserError, reason_of

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
GONE = (
    errno.ENOTCONN,
    errno.ESTALE,
    errno.EBADFD,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ESHUTDOWN,
    errno.EREMOTEIO,
)
"""Errors of a network file system whose server, or the way to it, is gone."""
GONE_TEXTS = tuple(map(os.strerror, (errno.ENOTCONN, errno.ESTALE, errno.EBADFD)))
"""What libraries say that raise exceptions of their own for them."""
WRITE_ERRORS = (*DISK_FULL, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a disk that a person can fix."""
KEPT_OPEN = (".fuse_hidden", ".nfs")
"""How names begin under which FUSE and NFS keep a file that was removed while it was open."""

# Of renameat2(2), which Python's os module lacks.
_AT_FDCWD = -100
_EXCHANGE = 2


def write_error(error: BaseException, what: object = "") -> UserError | None:
    """The line for one of WRITE_ERRORS or GONE, None for any other error.

    what: what could not be written; by default the error's file.
    """
    if is_out_of_reach(error):
        return out_of_reach(error, what)
    if not isinstance(error, OSError) or error.errno not in WRITE_ERRORS:
        return None
    advice = "make room" if error.errno in DISK_FULL else "fix this"
    return _in_a_line(error, what, f"cannot be written: {os.strerror(error.errno)}", advice)


def is_out_of_reach(error: BaseException) -> bool:
    """Whether it is one of GONE, or a library's exception that says so."""
    known = isinstance(error, OSError) and error.errno in GONE
    return known or any(text in reason_of(error) for text in GONE_TEXTS)


def out_of_reach(error: BaseException, what: object = "") -> UserError:
    """The line for one of GONE; what: as for `write_error`."""
    reason = reason_of(error)
    if isinstance(error, OSError) and error.errno:
        reason = os.strerror(error.errno)
    trouble = f"its file system is out of reach: {reason}"
    return _in_a_line(error, what, trouble, "see to its server and the network")


def _in_a_line(error: BaseException, what: object, trouble: str, advice: str) -> UserError:
    file = str(getattr(error, "filename", None) or "")
    subject = str(what or file or "the disk")
    beside = f" ({file})" if file and file != subject else ""
    return UserError(
        f"{subject}: {trouble}{beside}; nothing is lost:"
        f" {advice}, then run the same command to resume"
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file to write; then fsync it and rename it to `path`.

    A reader sees the old file or the new one. What a failed block wrote is removed.
    """
    # A pid alone may be taken on another node, or in a container of this one.
    aside = path.with_name(f".{path.name}.{os.getpid()}{secrets.randbelow(10**9):09}")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new one."""
    with replacing(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_leftovers(folder: Path) -> None:
    """Remove what `replacing` left below a folder when its process was killed."""
    for path in folder.rglob(".*"):
        if path.is_file() and path.suffix[1:].isdigit():
            path.unlink(missing_ok=True)


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
