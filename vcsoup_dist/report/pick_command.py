"""The command that makes a model of the report's balanced candidate."""

from __future__ import annotations

import shlex

from vcsoup_dist.records.summary import Summary


def pick_command(run: str, summary: Summary) -> str:
    """Of a run directory or recipe. Where theta_0 is the balanced row, of the first method's
    candidates."""
    command = f"vcsoup pick {shlex.quote(run)} --balanced"
    if summary.rows[summary.balanced].method is None and summary.methods:
        command += f" --method {summary.methods[0].method}"
    return command
