"""What `vcsoup reward-check` does: every reward and judge of a recipe on one worked example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from vcsoup_dist.check.data import first_pair
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

Rewards = dict[str, Any]
"""What it is called -> a reward; several where they share a model."""


def check_rewards(recipe: Recipe, plan: Sequence[Product]) -> None:
    """Print what was understood of every reward, and what looks wrong.

    Raises UserError in the end where a reward cannot be loaded or its scores would be wrong.
    """
    example = _first_pair(recipe, plan)
    console = Console()
    bad = 0
    for rewards, source in _groups(recipe, plan):
        names = ", ".join(rewards)
        try:
            checked = _check(rewards, source, example)
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


def _check(rewards: Rewards, source: Located | None, example: Pair) -> Checked:
    first = next(iter(rewards.values()))
    if isinstance(first, ColumnsReward):
        return check_columns(rewards, example)
    assert source is not None
    if isinstance(first, CallableReward):
        return check_function(rewards, source, example)
    return check_classifier(rewards, source, example)


def _first_pair(recipe: Recipe, plan: Sequence[Product]) -> Pair:
    """The first pair of the first dataset, with the columns that rewards name."""
    product = next(each for each in plan if each.stage == "read")
    found = first_pair(recipe, product, product.sources["data"])
    if found is None:
        raise UserError(f"values.{product.dataset}.data: no row of it can be read as a pair")
    return found


def _show(console: Console, names: str, checked: Checked) -> None:
    facts: Mapping[str, str] = {"of": checked.name, **checked.facts}
    width = max(map(len, facts))
    console.print(f"[bold]{_plain(names)}[/bold]", highlight=False)
    for name, text in facts.items():
        console.print(f"  {name:{width}}  {_plain(text)}", highlight=False, soft_wrap=True)
    for finding in checked.findings:
        mark = "[red]wrong[/red]" if finding.grave else "[yellow]note[/yellow] "
        console.print(f"  {mark}  {_plain(finding.text)}", highlight=False, soft_wrap=True)
    if not checked.findings:
        console.print("  nothing looks wrong", highlight=False)
    console.print()


def _plain(text: str) -> str:
    """Brackets of models' texts are no markup."""
    from rich.markup import escape

    return escape(text)
