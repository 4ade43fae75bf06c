"""Where a finished soup goes: what may lie there already, and the rename that replaces it.

Nothing is deleted that was not asked for. What lies at a target is looked at before the merge and
again when the soup takes its place, since hours lie between the two.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.checkpoints.auxiliary_files import CONFIG_NAME
from vcsoup_dist.errors import UserError
from vcsoup_dist.files import exchange, sync
from vcsoup_dist.souping.resources import existing_parent

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""What rename(2) of a folder says where another file, or a folder that is not empty, lies."""


def require_free(target: Path, overwrite: bool) -> None:
    """UserError unless a soup may take the place of what is at `target`.

    That is nothing or an empty folder; with `overwrite` a model directory too, if this user may
    remove it.
    """
    if os.path.lexists(target) and not _is_empty(target) and not overwrite:
        raise UserError(
            f"{target}: already exists, and is not made of these policies and weights as they"
            " are now; --overwrite replaces it"
        )
    if overwrite and target.is_dir() and not _is_replaceable(target):
        raise UserError(f"{target}: is not a model directory, so it is not replaced; move it away")
    for place in (target.parent, target):
        if os.path.lexists(place) and not place.is_dir():
            raise UserError(f"{place}: is not a directory; choose another --out")
    if target.is_dir() and not target.is_symlink():
        _require_removable(target)


def require_same_file_system(work: Path, targets: Sequence[Path]) -> None:
    """UserError unless soups can be renamed from the work folder to their targets."""
    device = work.stat().st_dev
    for target in targets:
        parent = existing_parent(target.parent)
        if os.path.ismount(target) or parent.stat().st_dev != device:
            raise UserError(
                f"{target}: is on another file system than {work}; give an --out whose parent"
                " folder is on the same one, such as a new folder in it"
            )
        if not os.access(parent, os.W_OK):
            raise UserError(f"{parent}: cannot be written; choose another --out")


def put_in_place(folder: Path, target: Path, overwrite: bool) -> None:
    """Rename a finished soup to `target`; UserError where `require_free` would say so now.

    Without `overwrite` nothing is ever removed: a plain rename of a folder replaces nothing but an
    empty one. With it the two change places before the old one is looked at once more and removed.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, target)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        require_free(target, overwrite)
        _replace(folder, target)
    sync(target.parent)


def _replace(folder: Path, target: Path) -> None:
    if exchange(folder, target):
        old = folder
    else:
        old = folder.with_name(folder.name + ".replaced")
        _remove(old)
        target.rename(old)
    if not _is_replaceable(old):  # it came between the look and the rename
        if old == folder:
            exchange(folder, target)
        else:
            old.rename(target)
        require_free(target, True)
    if old != folder:
        folder.rename(target)
    _remove(old)


def _is_replaceable(folder: Path) -> bool:
    return folder.is_dir() and (
        (folder / CONFIG_NAME).exists() or any(folder.glob("*.safetensors")) or _is_empty(folder)
    )


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _require_removable(target: Path) -> None:
    """Moving a folder away needs leave to write into it and, where others may write too (the
    sticky bit, as in /tmp), to be its owner."""
    for parent, _, _ in os.walk(target):
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"{parent}: cannot be written, so not replaced; choose another --out")
    above, own = target.parent.stat(), target.stat()
    user = os.geteuid()
    if above.st_mode & stat.S_ISVTX and user not in (0, own.st_uid, above.st_uid):
        raise UserError(f"{target}: belongs to another user, so it cannot be replaced")
