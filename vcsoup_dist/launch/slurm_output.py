"""What Slurm's commands print, among what a site prints beside it: banners, colours, warnings."""

from __future__ import annotations

import re

TERMINAL_CODES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
SUBMITTED = re.compile(r"([1-9][0-9]{0,9})(?:;[\w.-]+)?", re.ASCII)
"""As `sbatch --parsable` prints it: `123`, or `123;cluster`."""
QUEUED = re.compile(r"([1-9][0-9]{0,9})(?:_(?:([0-9]{1,10})|\[([0-9,:%-]+)\]))?", re.ASCII)
"""As squeue's %i: `12`, `12_3`, and tasks that wait together, `12_[1-3,7%2]`."""
MOST_TASKS = 4_000_001  # of an array, by Slurm's own limit


def lines_of(said: str) -> list[str]:
    """The lines, without what colours them."""
    return [TERMINAL_CODES.sub("", line).rstrip("\r") for line in said.split("\n")]


def submitted_id(said: str) -> str | None:
    """The id of the job in what `sbatch --parsable` said: its last line that is one."""
    found = [SUBMITTED.fullmatch(line.strip(" \t")) for line in lines_of(said)]
    ids = [match[1] for match in found if match]
    return ids[-1] if ids else None


def tasks_of(id: str) -> list[str] | None:
    """A job's id as squeue prints it, those of an array's waiting tasks one by one.

    None where it is no id, or one that was cut short.
    """
    match = QUEUED.fullmatch(id.strip(" \t"))
    if match is None:
        return None
    job, task, listed = match.groups()
    if listed is None:
        return [job if task is None else f"{job}_{task}"]
    numbers: list[int] = []
    for part in listed.partition("%")[0].split(","):
        bounds = re.fullmatch(r"([0-9]{1,7})(?:-([0-9]{1,7})(?::([1-9][0-9]{0,6}))?)?", part)
        if bounds is None:
            return None
        first = int(bounds[1])
        tasks = range(first, int(bounds[2] or first) + 1, int(bounds[3] or 1))
        if len(numbers) + len(tasks) > MOST_TASKS:
            return None
        numbers += tasks
    return [f"{job}_{number}" for number in numbers] or None
