"""Arguments and options that several commands share, and how their texts are read."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from vcsoup_dist.errors import UserError

Options = TypeVar("Options")
"""A dataclass of options."""
Command = Callable[[typer.Context, Options], None]


class Launcher(StrEnum):
    """The recipe's `launch.launcher`."""

    local = "local"
    srun = "srun"


RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file; or a run directory.")
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        "-d",
        help="Run directory; by default runs/NAME beside the recipe, with the recipe's name.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A key of the recipe, such as training.steps=20, as if it stood there; repeatable.",
    ),
]
LauncherOption = Annotated[
    Launcher | None,
    typer.Option(
        help="Where training ranks run: `srun` starts one for each task of this Slurm job. "
        "`launch.launcher` by default."
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="A running Ray cluster, such as HOST:6379 or `auto`; `local` starts one here. "
        "`launch.ray_address` by default, else RAY_ADDRESS, else `local`.",
    ),
]
Memory = Annotated[str, typer.Option(help="The most to hold, such as 512MiB.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")]


def takes(options: type[Options]) -> Callable[[Command[Options]], Callable[..., None]]:
    """Make a command of a function of the context and a dataclass, whose fields are its options."""

    def decorate(command: Command[Options]) -> Callable[..., None]:
        hints = {"context": typer.Context} | get_type_hints(options, include_extras=True)

        @functools.wraps(command)
        def run(context: typer.Context, **given: Any) -> None:
            command(context, options(**given))

        run.__annotations__ = hints | {"return": None}
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    annotation=hint,
                    default=getattr(options, name, inspect.Parameter.empty),
                )
                for name, hint in hints.items()
            ]
        )
        return run

    return decorate


def numbers_of(row: str) -> list[float]:
    """The numbers of `--weights 0.3,0.7`."""
    try:
        return [float(part) for part in row.split(",")]
    except ValueError:
        raise UserError(f"--weights {row}: give numbers with commas between them") from None


def bytes_of(text: str, option: str) -> int:
    """Bytes in `1GiB`, `500MB` or `4096`."""
    units = {"": 1, "B": 1}
    for power, letter in enumerate("KMGT", start=1):
        units |= {f"{letter}B": 1000**power, f"{letter}IB": 1024**power, letter: 1024**power}
    number = text.rstrip("BKMGTIbkmgti ")
    unit = text[len(number) :].strip().upper()
    try:
        return int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        raise UserError(f"{option} {text}: give a size such as 1GiB or 500MB") from None
