"""A process that has imported the libraries once, and forks for every `vcsoup` command of a test.

The ranks that a command launches are forked too, by the command itself. So commands and ranks are
processes with their own environment, folder, streams and exit code, without the seconds in which
each would import torch, transformers and DeepSpeed. They differ from what a user starts in this:
/proc has the server's command line and environment, strings hash alike in all of them, and the
interpreter is not taken apart at the end. Tests of such things, of how commands and ranks start,
and tests that send signals start real ones.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import importlib.util
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NoReturn

from forked_python import PACKAGE, ForkedPython, become_python, end_after, run_module

from vcsoup_dist.processes import die_with_parent

LIBRARIES = (
    *("torch", "torch.utils.tensorboard", "torch.nn.attention.varlen"),
    *("deepspeed", "deepspeed.ops.adam", "datasets"),
    *("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"),
    *("ray", "moocore", "matplotlib.pyplot", "pyarrow.dataset", "rich.progress", "jinja2"),
    *("safetensors.torch", "tokenizers", "yaml", "xxhash", "typer._adapters"),
    *(f"{PACKAGE}.cli.main", f"{PACKAGE}.launch.ranks", f"{PACKAGE}.pipeline.run"),
    *(f"{PACKAGE}.souping.{each}" for each in ("stage", "merge", "export")),
    *(f"{PACKAGE}.recipe.load", f"{PACKAGE}.checkpoints.pickled"),
)
STARTED_IN = dict(os.environ)
"""The environment in which the server imports them."""
READ_BY_IMPORTS = (
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH_", "DS_", "DEEPSPEED_", "CUDA_"),
    *("LD_", "LC_", "LANG", "MPL", "PYTHON"),
)
"""How the variables begin that libraries may read when they are imported; Ray starts by its own."""
QUIET = {"DEEPSPEED_LOG_LEVEL": "error", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
MESSAGE = 1 << 17  # bytes


class Server:
    """The server of this test session."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._owner = os.getpid()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fork_server", str(theirs.fileno())],
                env=STARTED_IN | QUIET | {"PYTHONPATH": _with_tests(STARTED_IN)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the server, and wait until it has written its coverage."""
        if os.getpid() == self._owner:
            self._socket.close()
            self._process.wait()

    def start(
        self,
        do: str,
        what: object,
        *,
        folder: Path,
        environment: Mapping[str, str],
        files: Sequence[int],
    ) -> Child:
        """A child that does `what`; `files` are its standard streams, and others it is to have."""
        os.umask(mask := os.umask(0))
        # A process that starts a Ray has this set for good; the server's Ray was imported without.
        own = {k: v for k, v in environment.items() if k != "RAY_AUTH_MODE" or k in STARTED_IN}
        request = (do, pickle.dumps(what), str(folder), own, mask)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._socket, [pickle.dumps(request)], [theirs.fileno(), *files])
        return Child(ours)


class Child:
    """A child of the server."""

    def __init__(self, reports: socket.socket) -> None:
        self._reports = reports
        self.pid = self._report()
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code as Popen's. Raises TimeoutError after so many seconds."""
        if self.returncode is None:
            self._reports.settimeout(timeout)
            self.returncode = self._report()
        return self.returncode

    def kill(self) -> None:
        """Unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self._reports.close()

    def _report(self) -> int:
        said = self._reports.recv(MESSAGE)
        if not said:
            raise RuntimeError("the fork server has ended")
        return int(said)


@functools.cache
def server() -> Server:
    """Started by its first use."""
    return Server()


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether libraries would be imported in the same way in this environment."""
    differing = dict(set(environment.items()) ^ set(STARTED_IN.items()))
    # Ray sets the second in a process that starts one.
    later = ("PYTHONPATH", "PYTHONBREAKPOINT")
    return not any(name.startswith(READ_BY_IMPORTS) and name not in later for name in differing)


def run_forked(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    timeout: float,
    merged: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`python -P -m COMMAND` in a forked process, as `subprocess.run` would have it.

    merged: standard error goes into standard output.
    """
    with ExitStack() as stack:
        output, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        files = [0, output.fileno(), (output if merged else errors).fileno()]
        child = server().start(
            "run", list(command), folder=folder, environment=environment, files=files
        )
        stack.callback(child.kill)
        try:
            code = child.wait(timeout)
        except TimeoutError:
            said = _text(output), _text(errors)
            raise subprocess.TimeoutExpired(command, timeout, *said) from None
        return subprocess.CompletedProcess(command, code, _text(output), _text(errors))


def call_forked(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function in a forked process, in this environment and folder, with these streams.

    What it returns or raises comes back as if it were called here. It is found by its name, and
    sees nothing of what this process has patched. Ranks that it launches are forked from it.
    """
    with tempfile.TemporaryFile() as outcome:
        child = server().start(
            "call",
            (sys.path, pickle.dumps((function, arguments, named))),
            folder=Path.cwd(),
            environment=os.environ,
            files=[0, 1, 2, outcome.fileno()],
        )
        try:
            code = child.wait()
        finally:
            child.kill()
        outcome.seek(0)
        if code:
            raise RuntimeError(f"{function.__name__} ended its process with code {code}")
        result, error = pickle.load(outcome)
    if error is not None:
        raise error
    return result


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="surrogateescape")


def _with_tests(environment: Mapping[str, str]) -> str:
    parts = [str(Path(__file__).parent), environment.get("PYTHONPATH")]
    return os.pathsep.join(filter(None, parts))


# --- in the server ---


def serve(requests: socket.socket) -> None:
    """Fork for every request until the test session ends."""
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([requests.fileno(), *running], [], [])[0]:
            if ready in running:
                pid, reports = running.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                _report(reports, code)
                reports.close()
                continue
            request, files, _, _ = socket.recv_fds(requests, MESSAGE, 8)
            if not request:
                return
            pid = os.fork()
            if not pid:
                requests.close()
                _become(request, files)
            for handle in files[1:]:
                os.close(handle)
            reports = socket.socket(fileno=files[0])
            _report(reports, pid)
            running[os.pidfd_open(pid)] = pid, reports


def _report(reports: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the test has ended
        reports.send(str(number).encode())


def _become(request: bytes, files: Sequence[int]) -> NoReturn:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    do, what, folder, environment, mask = pickle.loads(request)
    for stream in range(3):
        os.dup2(files[1 + stream], stream)
    for handle in files[:4]:
        os.close(handle)
    os.chdir(folder)
    os.umask(mask)
    importlib.import_module(f"{PACKAGE}.launch.ranks").Popen = ForkedPython
    if do == "run":
        run_module(pickle.loads(what), environment)
    become_python(environment)
    end_after(lambda: _call(what, files[4]))


def _call(what: bytes, outcome: int) -> None:
    sys.path[:], call = pickle.loads(what)
    try:
        function, arguments, named = pickle.loads(call)
        done = function(*arguments, **named), None
    except BaseException as error:
        done = None, error
    with open(outcome, "wb") as file:
        pickle.dump(done, file)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the test session ends this
    for library in LIBRARIES:
        if importlib.util.find_spec(library):  # typer's is in newer versions only
            importlib.import_module(library)
    # A thousand patterns that a process compiles as it loads its first model.
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("")
    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "threads do not live on in a fork"
    serve(socket.socket(fileno=int(sys.argv[1])))
