"""What Linux says of this machine's processes, in /proc."""

from __future__ import annotations

import glob
import os
from pathlib import Path


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it ended meanwhile
                continue
            # "pid (name) state parent ..."; the name may hold spaces and brackets.
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def name_of(pid: int) -> str:
    """Name of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def openers(path: Path) -> list[int]:
    """Other processes that have a file open, as far as we may look into them."""
    found = set()
    for handle in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            if os.path.samefile(path, handle):
                found.add(int(Path(handle).parts[2]))
        except OSError:  # closed meanwhile
            continue
    return sorted(found - {os.getpid()})
