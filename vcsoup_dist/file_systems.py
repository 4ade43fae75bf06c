"""Which file systems several hosts may share, and seeing there what another host has just done."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from functools import cache
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")

OF_ONE_HOST = {
    *("aufs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs"),
    *("reiserfs", "tmpfs", "xfs", "zfs", "ecryptfs", "exfat", "vfat", "ntfs3", "fuseblk"),
    *("nilfs2", "hfsplus"),
}
"""File systems that one host mounts at a time; any other, also an unknown one, may be shared."""


def may_be_shared(path: Path) -> bool:
    """Whether processes on other hosts may see a file or folder; False where it is not there."""
    return path.exists() and file_system(path) not in OF_ONE_HOST | {""}


def look_afresh(root: Path, names: Iterable[str]) -> None:
    """Have this host ask the server what is in the folders from `root` to those of `names`.

    It may remember for a minute (NFS) what was in a folder, and that something was not. It forgets
    that when it changes the folder itself.
    """
    parents = {parent for name in names for parent in Path(name).parents}
    for parent in sorted(parents):
        mark = root / parent / f".look-{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):  # the folder is not there, or another user's
            mark.touch(exist_ok=False)
            mark.unlink()


def file_system(path: Path) -> str:
    """The type of the file system below an existing path, such as `nfs4`; empty where no system
    says."""
    return _file_system(os.path.realpath(path), os.stat(path).st_dev)


@cache
def _file_system(path: str, device: int) -> str:
    if not MOUNTS.exists():  # not Linux
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    longest, of_longest = "", ""
    for line in MOUNTS.read_text().splitlines():
        mount, _, source = line.partition(" - ")
        _, _, its_number, _, point, *_ = mount.split()
        point = point.replace("\\040", " ")
        kind = source.split()[0]
        if its_number == number:
            return kind
        # Volumes of btrfs have device numbers that are not the mount's.
        if len(point) >= len(longest) and (path + "/").startswith(point.rstrip("/") + "/"):
            longest, of_longest = point, kind
    return of_longest
