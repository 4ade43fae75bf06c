"""Options of Slurm's `sbatch` for the job of a stage, as the recipe and the site file give them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, StrictBool, StrictFloat, StrictInt, StrictStr

JobStage = Literal["score", "filter", "reference", "train", "merge", "evaluate", "report"]
"""Stages with a job of their own; `read` is done with `score`, theta_0 with `reference`."""

RESERVED = {
    "array": "the number of policies, or `launch.merge_ranks`, decides it",
    "chdir": "jobs run in the folder of `vcsoup submit`",
    "clusters": "jobs are looked for on this cluster alone",
    "comment": "it says which run a job is of",
    "dependency": "the stages decide it",
    "error": "logs are in the run directory",
    "export": "jobs need the environment of `vcsoup submit`",
    "job-name": "it is the recipe's and the stage's",
    "output": "logs are in the run directory",
    "parsable": "`vcsoup submit` sets it",
    "test-only": "use `vcsoup submit --dry-run`",
    "wait": "`vcsoup submit` does not wait",
    "wrap": "each stage has its script",
}
"""What `vcsoup submit` decides, and why."""


def _long_names(options: object) -> object:
    if isinstance(options, Mapping):
        for name in options:
            if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
                dashed = str(name).lower().replace("_", "-").strip("-")
                raise ValueError(f"`{name}`: give the long name of an option of sbatch: `{dashed}`")
            if name in RESERVED:
                raise ValueError(f"`{name}` cannot be set: {RESERVED[name]}")
            # YAML reads 12:00:00 as the number 43200, which sbatch takes for minutes.
            if name in ("time", "time-min", "begin", "deadline") and not isinstance(
                options[name], str
            ):
                raise ValueError(f'`{name}`: put it in quotes, such as "12:00:00"')
    return options


SbatchOptions = Annotated[
    dict[str, StrictStr | StrictInt | StrictFloat | StrictBool], BeforeValidator(_long_names)
]
"""Long name -> value; `true` for an option without one, `false` to leave it out after all."""
