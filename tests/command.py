"""The `vcsoup` command as a process, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fork_server import can_fork, run_forked

VCSOUP = "vcsoup_dist.cli"
TIMEOUT = 240.0  # seconds; less than a test has


def run_vcsoup(
    *arguments: object, folder: Path, merged: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder`, with these variables of the environment added.

    merged: standard error goes into standard output. The process is forked from one that has
    imported the libraries; see `fork_server` for where that differs from a process of its own.
    """
    environment = {**os.environ, **variables}
    command = [VCSOUP, *map(str, arguments)]
    if can_fork(environment):
        return run_forked(
            command, folder=folder, environment=environment, timeout=TIMEOUT, merged=merged
        )
    return subprocess.run(
        [sys.executable, "-P", "-m", *command],
        cwd=folder,
        env=environment,
        timeout=TIMEOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        text=True,
    )


def vcsoup(*arguments: object, folder: Path, code: int = 0, **variables: str) -> str:
    """Run the command; what it printed. A refusal must end with a line of ours."""
    done = run_vcsoup(*arguments, folder=folder, merged=True, **variables)
    assert done.returncode == code, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    if code == 2:
        assert done.stdout.splitlines()[-1].startswith("vcsoup: "), done.stdout
    return done.stdout


def start_vcsoup(*arguments: object, folder: Path, **options: Any) -> subprocess.Popen[str]:
    """The command as a process of its own, for tests that send it signals or look at its start."""
    command = [sys.executable, "-P", "-m", VCSOUP, *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, text=True, **options)
