"""`vcsoup` as a process that stops itself at a moment of its merge, for tests of what then happens.

A driver is Python that runs before the command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

# An entry in the journal for every chunk; it stops after so many entries, where that is not 0.
PAUSING = """
import os, signal
from vcsoup_dist.souping.output import write
from vcsoup_dist.souping.output.journal import Journal
write.SYNC_EVERY, write.SYNC_SHARE = 0.0, 1e9
left = {entries}
def append(self, chunks, append=Journal.append):
    global left
    append(self, chunks)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGSTOP)
Journal.append = append
"""
HASTY = PAUSING.format(entries=0)
# It stops when it has published so many soups.
PUBLISHING = """
import os, signal
from vcsoup_dist.souping.output import publish
left = {soups}
def put_in_place(*arguments, put_in_place=publish.put_in_place):
    global left
    put_in_place(*arguments)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGSTOP)
publish.put_in_place = put_in_place
"""


def start(*arguments: object, folder: Path, driver: str = HASTY) -> subprocess.Popen[str]:
    """`vcsoup` in `folder`."""
    code = f"{driver}\nfrom vcsoup_dist.cli.main import main\nmain()\n"
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, **streams)


def paused(*arguments: object, folder: Path, driver: str) -> subprocess.Popen[str]:
    """The same, when its driver has stopped it."""
    process = start(*arguments, folder=folder, driver=driver)
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state is not None and state.si_status == signal.SIGSTOP, process.communicate()[1]
    return process


def kill(process: subprocess.Popen[str]) -> None:
    """By SIGKILL; an error where it has ended before."""
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
