"""What `vcsoup reward-check` does: every reward and judge of a recipe on the first pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from vcsoup_dist.check.data import first_pairs
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.recipe import CallableReward, ColumnsReward, Recipe
from vcsoup_dist.scoring.reward_check import (
    Checked,
    check_classifier,
    check_columns,
    check_function,
)
from vcsoup_dist.scoring.rewards import by_model
from vcsoup_dist.workspace import Product

PAIRS = 60
"""Of each dataset, which are looked at."""

Rewards = dict[str, Any]
"""What it is called -> a reward; several where they share a model."""


def check_rewards(recipe: Recipe, plan: Sequence[Product]) -> None:
    """Print what was understood of every reward, and what looks wrong.

    Raises UserError in the end where a reward cannot be loaded or its scores would be wrong.
    """
    read: dict[str, list[Pair]] = {}
    console = Console()
    bad = 0
    for rewards, source in _groups(recipe, plan):
        names = ", ".join(rewards)
        try:
            pairs = {name: _pairs_of(name, recipe, plan, read) for name in rewards}
            checked = _check(rewards, source, pairs, recipe.scoring.max_bad_rows)
        except UserError as error:
            console.print(f"[bold]{names}[/bold]", highlight=False)
            console.print(
                f"  [red]wrong[/red]  {_plain(str(error))}\n", highlight=False, soft_wrap=True
            )
            bad += 1
            continue
        _show(console, names, checked)
        bad += any(finding.grave for finding in checked.findings)
    if bad:
        raise UserError(f"{bad} of the rewards above would give wrong scores, or none")


def _groups(recipe: Recipe, plan: Sequence[Product]) -> Iterator[tuple[Rewards, Located | None]]:
    """Rewards, then judges, those that share a model together, and where its model lies."""
    sources: dict[str, Located | None] = {}
    for product in plan:
        if product.stage == "score":
            sources.setdefault(str(product.value), product.sources.get("reward"))
        elif product.stage == "evaluate":
            for value in recipe.values:
                judge = product.sources.get(f"judge/{value}")
                sources.setdefault(f"{value} (judge)", judge)
    rewards: Rewards = {name: value.reward for name, value in recipe.values.items()}
    rewards |= {
        f"{name} (judge)": value.judge for name, value in recipe.values.items() if value.judge
    }
    for group in by_model(rewards):
        yield group, sources[next(iter(group))]


def _check(
    rewards: Rewards,
    source: Located | None,
    pairs: Mapping[str, Sequence[Pair]],
    most_unscored: float,
) -> Checked:
    first = next(iter(rewards.values()))
    if isinstance(first, ColumnsReward):
        return check_columns(rewards, pairs, most_unscored)
    assert source is not None
    if isinstance(first, CallableReward):
        return check_function(rewards, source, pairs, most_unscored)
    return check_classifier(rewards, source, pairs, most_unscored)


def _pairs_of(
    name: str, recipe: Recipe, plan: Sequence[Product], read: dict[str, list[Pair]]
) -> list[Pair]:
    """The first pairs of the data of a value, or of the first dataset where it has none.

    name: of a value or its judge. `read`, dataset -> pairs, grows.
    """
    datasets = {str(each.dataset): each for each in plan if each.stage == "read"}
    data = recipe.values[name.removesuffix(" (judge)")].data
    wanted = next(iter(datasets))
    if data is not None:
        wanted = data.pairs_of[0] if data.pairs_of else name.removesuffix(" (judge)")
    if wanted not in read:
        product = datasets[wanted]
        read[wanted] = first_pairs(recipe, product, product.sources["data"], PAIRS)
    if not read[wanted]:
        raise UserError(f"values.{wanted}.data: no row of it can be read as a pair")
    return read[wanted]


def _show(console: Console, names: str, checked: Checked) -> None:
    facts: Mapping[str, str] = {"of": checked.name, **checked.facts}
    width = max(map(len, facts))
    console.print(f"[bold]{_plain(names)}[/bold]", highlight=False)
    for name, text in facts.items():
        console.print(f"  {name:{width}}  {_plain(text)}", highlight=False, soft_wrap=True)
    _show_samples(console, checked.samples)
    for finding in checked.findings:
        mark = "[red]wrong[/red]" if finding.grave else "[yellow]note[/yellow] "
        console.print(f"  {mark}  {_plain(finding.text)}", highlight=False, soft_wrap=True)
    if not checked.findings:
        console.print("  nothing looks wrong", highlight=False)
    console.print()


def _show_samples(console: Console, samples: Mapping[str, Mapping[str, str]]) -> None:
    """Figures over the first pairs, a column per value."""
    table = Table(box=None, padding=(0, 2, 0, 2), pad_edge=True)
    table.add_column("")
    for name in samples:
        table.add_column(_plain(name), justify="right")
    for row in next(iter(samples.values())):
        table.add_row(row, *(figures[row] for figures in samples.values()))
    console.print(table, highlight=False)


def _plain(text: str) -> str:
    """Brackets of models' texts are no markup."""
    from rich.markup import escape

    return escape(text)
