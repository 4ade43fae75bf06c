"""What the end of a run prints, and `vcsoup status` of a finished one."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vcsoup_dist.pipeline.plan_file import read_plan
from vcsoup_dist.records.summary import Summary
from vcsoup_dist.report.headline import headline
from vcsoup_dist.report.pick_command import pick_command
from vcsoup_dist.workspace import Workspace


def show_result(workspace: Workspace) -> None:
    """The table, the headline, where the report is, and how to use a model."""
    folder = workspace.root / "report"
    console = Console()
    print((folder / "table.txt").read_text().rstrip())
    for line in headline(Summary.read(folder)):
        console.print(line, highlight=False)
    show_next(workspace)


def show_next(workspace: Workspace) -> None:
    """Where the report of a finished run is, and the command that picks a model."""
    folder = workspace.root / "report"
    print(f"report: {folder / 'index.html'}")
    print(f"use a model: {pick_command(str(workspace.root), Summary.read(folder))}")


def show_filter_pages(workspace: Workspace) -> None:
    """Where the pages of the filtered sets are that the last command planned."""
    from vcsoup_dist.records.filter_report import PAGE  # numpy, which `status` does without

    for product in read_plan(workspace.root) or ():
        page: Path = workspace.folder(product) / PAGE
        if product.stage == "filter" and page.exists():
            print(f"page: {page}")
