"""How much memory this process holds."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def anonymous_memory() -> int:
    """Bytes that are no file's; 0 where /proc does not say."""
    return _status("RssAnon") or 0


def peak_memory() -> int:
    """Bytes. On Linux not from getrusage, which begins with what the parent held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"{field}:\s*(\d+) kB", status)
    return int(found[1]) * 1024 if found else None
