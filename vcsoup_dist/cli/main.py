"""The `vcsoup` command. A stage is imported only when it is asked for."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from vcsoup_dist import __version__
from vcsoup_dist.cli import comparing, merging, picking, runs, slurm, stages
from vcsoup_dist.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, Preempted, UserError
from vcsoup_dist.files import is_out_of_reach, out_of_reach
from vcsoup_dist.import_paths import import_last
from vcsoup_dist.launch.stop_signals import STOP_SIGNALS, detach_lost_terminal, not_ignored
from vcsoup_dist.pipeline.stages import STAGES
from vcsoup_dist.progress import log_to_terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

COMMANDS: dict[str, Callable[..., None]] = {
    "check": runs.check,
    "status": runs.status,
    "reward-check": runs.reward_check,
    "score": stages.score,
    "filter": stages.filter_pairs,
    "values": runs.values,
    "sft": stages.sft,
    "reference": stages.reference,
    "train": stages.train,
    "merge": merging.merge,
    "export": merging.export,
    "verify": merging.verify,
    "evaluate": stages.evaluate,
    "report": stages.report,
    "compare": comparing.compare,
    "pick": picking.pick,
    "run": stages.run,
    "submit": slurm.submit,
    "cancel": slurm.cancel,
    "clean": runs.clean,
    "demo": runs.demo,
}
"""In the order of `vcsoup --help`."""

app = typer.Typer(
    help="Value-consistent soups of language models: score, filter, train, soup, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

MACHINE_ERRORS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENXIO,
    errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR,
)  # fmt: skip
"""Errors of the machine and its files, where the name of the file says enough."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vcsoup_dist {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
for _stage in STAGES.values():
    if (_name := _stage.command.partition(" ")[0]) not in COMMANDS:
        app.command(_name)(stages.command_for(_stage.name, _name))
app.command("warmup", hidden=True)(stages.warmup)


def _stop(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        detach_lost_terminal()
    raise Preempted(number)


def _leave(code: int) -> NoReturn:
    """Exit with this code, also where a further request to stop comes while Ray shuts down."""
    for each in {signal.SIGINT, *not_ignored(STOP_SIGNALS)}:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(code)


def main() -> None:
    """Entry point: a mistake is a plain line and exit code 2, a stop is exit code 75."""
    log_to_terminal(logging.INFO)
    import_last(os.getcwd())  # recipes may name callables of modules there
    os.environ["VCSOUP_BEGAN"] = str(time.time())  # for launch.max_minutes
    for each in not_ignored(STOP_SIGNALS):
        signal.signal(each, _stop)
    try:
        app()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"vcsoup: {line}", file=sys.stderr)
        sys.exit(2)
    except Preempted as stopped:
        print(f"vcsoup: {stopped}", file=sys.stderr)
        _leave(EXIT_INTERRUPTED if stopped.by == signal.SIGINT else EXIT_PREEMPTED)
    except Exception as error:
        if is_out_of_reach(error):
            print(f"vcsoup: {out_of_reach(error)}", file=sys.stderr)
        elif isinstance(error, OSError) and error.errno in MACHINE_ERRORS and error.filename:
            print(f"vcsoup: {error.filename}: {error.strerror}", file=sys.stderr)
        else:
            raise
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stopped:
        # typer turns an interrupt into an exit with code 130.
        if isinstance(stopped, SystemExit) and stopped.code != EXIT_INTERRUPTED:
            raise
        print("vcsoup: interrupted; run the same command to resume", file=sys.stderr)
        _leave(EXIT_INTERRUPTED)
