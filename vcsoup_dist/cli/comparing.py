"""The command `vcsoup compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vcsoup_dist.errors import UserError


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Run directories, or recipes that were run."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Compare finished runs on the first one's scale, with intervals; changes nothing.

    Differences are paired where the runs answer the same prompts. The runs must have the same
    values, judged by the same rewards.

    Example: vcsoup compare runs/small runs/large
    """
    from vcsoup_dist.pipeline.find_run import find_run
    from vcsoup_dist.report.comparing.compare import compare_runs
    from vcsoup_dist.report.comparing.finished import read_runs
    from vcsoup_dist.report.comparing.show import as_json_text, show

    if len(runs) < 2:
        raise UserError("compare: give two runs or more, such as `vcsoup compare runs/a runs/b`")
    found = compare_runs(read_runs([find_run(run).root for run in runs]))
    if as_json:
        print(as_json_text(found))
    else:
        show(found)
