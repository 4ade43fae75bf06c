"""Options of Slurm's `sbatch` for the job of a stage, as the recipe and the site file give them."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, StrictBool, StrictFloat, StrictInt, StrictStr

from vcsoup_dist.recipe.sbatch_values import KNOWN, trouble_with_value


def _known_job(name: str) -> str:
    # The table of stages lies above and is read by name.
    known = importlib.import_module("vcsoup_dist.pipeline.stages").job_names()
    if name not in known:
        raise ValueError(f"`{name}` is not a stage with a job; those are {', '.join(known)}")
    return name


JobName = Annotated[str, AfterValidator(_known_job)]
"""A stage with a job of its own; others are made in one of these."""

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

MEANT = {
    "cpu": "cpus-per-task",
    "cpus": "cpus-per-task",
    "gpu": "gpus",
    "memory": "mem",
    "queue": "partition",
    "ranks": "ntasks",
    "tasks": "ntasks",
    "walltime": "time",
}
"""Names of other schedulers and of habit."""

ALIKE = 0.8  # from here on a name is taken for a slip; what is further off may be a plugin's


def _checked(options: object) -> object:
    if isinstance(options, Mapping):
        for name, value in options.items():
            _check_name(name)
            # YAML reads 12:00:00 as the number 43200, which sbatch takes for minutes.
            timed = name in ("time", "time-min", "begin", "deadline")
            if timed and not isinstance(value, str) and value is not False:
                raise ValueError(f'`{name}`: put it in quotes, such as "12:00:00"')
            if trouble := trouble_with_value(name, value):
                raise ValueError(f"`{name}`: {trouble}")
    return options


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        dashed = str(name).lower().replace("_", "-").strip("-")
        raise ValueError(f"`{name}`: give the long name of an option of sbatch: `{dashed}`")
    if name in RESERVED:
        raise ValueError(f"`{name}` cannot be set: {RESERVED[name]}")
    if is_known(name):
        return
    close = difflib.get_close_matches(name, [*KNOWN, *RESERVED], n=1, cutoff=ALIKE)
    if meant := MEANT.get(name) or next(iter(close), None):
        raise ValueError(f"`{name}` is not an option of sbatch; did you mean `{meant}`?")


def is_known(name: str) -> bool:
    """Whether an option is sbatch's own, or of the plugin for containers (pyxis)."""
    return name in KNOWN or name.startswith(("container-", "no-container-"))


SbatchOptions = Annotated[
    dict[str, StrictStr | StrictInt | StrictFloat | StrictBool], BeforeValidator(_checked)
]
"""Long name -> value; `true` for an option without one, `false` to leave it out after all."""
