"""What the end of a run prints."""

from __future__ import annotations

from rich.console import Console

from vcsoup_dist.records.summary import Summary
from vcsoup_dist.report.tables import headline
from vcsoup_dist.workspace import Workspace


def show_result(workspace: Workspace) -> None:
    """The table, the hypervolumes and where the report is."""
    folder = workspace.root / "report"
    console = Console()
    print((folder / "table.txt").read_text().rstrip())
    for line in headline(Summary.read(folder)):
        console.print(line, highlight=False)
    console.print(f"report: {folder / 'index.html'}", highlight=False)
