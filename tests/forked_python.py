"""Python processes made by a fork: `python -P -m MODULE ARGUMENTS`, but what is imported stays."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

PACKAGE = "vcsoup_dist"


class ForkedPython(subprocess.Popen):
    """Popen of `python -P -m MODULE ARGUMENTS` that forks this process and starts no interpreter.

    Popen itself makes streams, signal masks and process groups. In place of the exec, `preexec_fn`
    runs the module and never returns.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        pass_fds: Iterable[int] = (),
        **options: Any,
    ) -> None:
        assert list(command[:3]) == [sys.executable, "-P", "-m"], command

        def instead_of_exec() -> NoReturn:
            _close_all_but({0, 1, 2, *pass_fds})
            _forget_package()
            run_module(command[3:], env)

        options |= {"env": env, "pass_fds": pass_fds, "preexec_fn": instead_of_exec}
        super().__init__(command, **options)


def run_module(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """In a forked child: become `python -P -m COMMAND`, in this environment."""
    become_python(environment)
    sys.argv = [*command]
    end_after(lambda: runpy.run_module(command[0], run_name="__main__", alter_sys=True))


def become_python(environment: Mapping[str, str]) -> None:
    """In a forked child: streams, signals, environment and import path of a started Python."""
    gc.enable()
    gc.freeze()  # files of the parent's objects have numbers that are others' in this process
    _streams_before.extend([sys.stdin, sys.stdout, sys.stderr])  # they may hold unwritten text
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False, buffering=1 if os.isatty(1) else -1)
    sys.stderr = os.fdopen(2, "w", closefd=False, buffering=1, errors="backslashreplace")
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]  # of the parent's objects
    own = _python_path(os.environ)
    sys.path[:] = [*_python_path(environment), *(each for each in sys.path if each not in own)]
    os.environ.clear()
    os.environ.update(environment)


_streams_before: list[Any] = []


def _python_path(environment: Mapping[str, str]) -> list[str]:
    return [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]


def end_after(work: Callable[[], object]) -> NoReturn:
    """Do the work and exit as Python does after its main program."""
    code = 0
    try:
        work()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = int(stop.code) if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _close_all_but(kept: set[int]) -> None:
    for handle in map(int, os.listdir("/proc/self/fd")):
        if handle not in kept:
            try:
                os.close(handle)
            except OSError:  # that of the listing
                continue


def _forget_package() -> None:
    """A rank imports the package anew, without the state of the command that launched it."""
    for name in [each for each in sys.modules if each.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    logging.root.handlers.clear()
    if "ray" in sys.modules:  # the launcher may be connected to a cluster, and still need it
        atexit.unregister(sys.modules["ray"].shutdown)
