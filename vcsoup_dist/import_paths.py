"""Where Python looks for modules: never first in the folder in which a command was started.

A `queue.py` or `profile.py` that lies there would be run in place of Python's own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

IMPORT_LAST = "VCSOUP_IMPORT_LAST"
"""Environment variable of an actor: the folder of the command. Ray puts that first."""


def import_last(folder: str) -> None:
    """Find modules of a folder only where nothing else has their name.

    Not where PYTHONPATH names it: then a person has put it first.
    """
    if folder not in _python_path():
        sys.path[:] = [*(each for each in sys.path if each != folder), folder]


def folder_of_command() -> str | None:
    """The folder of which `import_last` was told, None where PYTHONPATH names it."""
    here = os.getcwd()
    return here if here in sys.path and here not in _python_path() else None


def uninstalled_package() -> list[str]:
    """The folder from which this package is imported, where it is not Python's own."""
    folder = str(Path(__file__).resolve().parents[1])
    return [] if folder.startswith((sys.prefix, sys.base_prefix)) else [folder]


def python_path() -> str:
    """PYTHONPATH of a rank, which is to have this package too, installed or not."""
    return os.pathsep.join(dict.fromkeys([*_python_path(), *uninstalled_package()]))


def _python_path() -> list[str]:
    # An empty part, as of `PYTHONPATH=/mine:$PYTHONPATH`, would mean the current folder.
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [os.path.abspath(each) for each in parts if each]
