"""A comparison of runs for the terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from vcsoup_dist.records.summary import Comparison
from vcsoup_dist.report.comparing.balanced import BalancedValue
from vcsoup_dist.report.comparing.compare import RunsCompared
from vcsoup_dist.report.headline import bracket
from vcsoup_dist.report.numbers import decimals_for, number


def as_json_text(found: RunsCompared) -> str:
    """All of it, numbers in full."""
    return json.dumps(asdict(found), indent=1)


def show(found: RunsCompared, console: Console | None = None) -> None:
    """Three tables, and what must be known of them."""
    console = console or Console()
    _say(console, _scale(found))
    for note in found.notes:
        _say(console, note)
    if found.methods:
        _say(console, f"\nhypervolume at {found.candidates} candidates each, like {found.like}")
        _print(console, ["method", "candidates", "seeds", "hypervolume", "interval"], [
            [each.name, str(each.candidates), str(each.seeds), number(each.hypervolume, 3),
             bracket(each.low, each.high, 3).strip()]
            for each in found.methods
        ])  # fmt: skip
    if found.pairs:
        together = "the interval holds" if len(found.pairs) == 1 else "all intervals hold together"
        _say(console, f"\ndifferences between runs: {together} with {100 * found.confidence:g} %")
        _print(console, ["larger", "smaller", "difference", "interval", ""], [
            [pair.first, pair.second, number(pair.difference, 3),
             bracket(pair.low, pair.high, 3).strip(),
             _verdict(found, pair)]
            for pair in found.pairs
        ])  # fmt: skip
    values = list(found.scale.low)
    _say(console, f"\nbalanced soups, and their differences to that of {found.runs[0]}: picked on "
         "these prompts, and the intervals do not count that")  # fmt: skip
    _print(console, ["run", "balanced", "picked from", *values], [
        [each.run, each.candidate, str(each.picked_from),
         *(_value(found, v, cell) for v, cell in each.values.items())]
        for each in found.balanced
    ])  # fmt: skip


def _scale(found: RunsCompared) -> str:
    spans = "theta_0" if found.scale.method is None else (
        f"theta_0 and the {'policies' if found.scale.policies_only else 'candidates'} of "
        f"{found.scale.method}"
    )  # fmt: skip
    counts = set(found.prompts.values())
    prompts = "; ".join(f"{name}: {count}" for name, count in found.prompts.items())
    answered = f"{counts.pop()} in each run" if len(counts) == 1 else prompts
    return f"scale: {spans} in {found.runs[0]}; prompts: {answered}"


def _verdict(found: RunsCompared, pair: Comparison) -> str:
    """One seed says nothing of how much another training run would differ."""
    if not pair.differs:
        return "cannot be told apart"
    seeds = [each.seeds for each in found.methods if each.name in (pair.first, pair.second)]
    return "differ" if min(seeds) > 1 else "these policies differ"


def _value(found: RunsCompared, value: str, cell: BalancedValue) -> str:
    decimals = decimals_for(found.scale.high[value] - found.scale.low[value])
    if cell.difference is None:
        return number(cell.mean, decimals)
    sign = "+" if cell.difference > 0 else ""
    interval = bracket(cell.low, cell.high, decimals)
    return f"{number(cell.mean, decimals)} ({sign}{number(cell.difference, decimals)}{interval})"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print(console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False, markup=False)
