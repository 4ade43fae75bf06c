"""What the end of a run prints."""

from __future__ import annotations

import json

from rich.console import Console

from vcsoup_dist.workspace import Workspace


def show_result(workspace: Workspace) -> None:
    """The table, the hypervolumes and where the report is."""
    folder = workspace.root / "report"
    console = Console()
    print((folder / "table.txt").read_text().rstrip())
    summary = json.loads((folder / "summary.json").read_text())
    for line in summary["headline"]:
        console.print(line, highlight=False)
    console.print(f"report: {folder / 'index.html'}", highlight=False)
