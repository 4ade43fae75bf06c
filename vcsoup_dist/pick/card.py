"""The README.md of a picked model: front matter for the hub, then what a reader must know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from vcsoup_dist import __version__
from vcsoup_dist.in_context.prompts import AddedText
from vcsoup_dist.methods import methods_of
from vcsoup_dist.pick.base_card import BaseModel
from vcsoup_dist.pick.choose import Choice, candidate_label
from vcsoup_dist.pick.front_matter import front_matter, hub_datasets
from vcsoup_dist.recipe import CallableReward, ClassifierReward, Recipe
from vcsoup_dist.records.summary import Summary
from vcsoup_dist.report.limits import limits
from vcsoup_dist.report.numbers import decimals_for, fixed, number

SHOWN = {"consistency", "methods", "sft", "training"}
"""Sections of the recipe that decide what every model becomes."""
OF_THE_MACHINE = ("deepspeed", "nvme_path")
"""Keys in them that name files."""


@dataclass(frozen=True)
class PolicyFacts:
    """One policy of the model, as the card lists it."""

    name: str
    weight: str
    """lambda; empty for a policy that is the model itself."""
    steps: int
    pairs: int
    fingerprint: str


@dataclass(frozen=True)
class CardFacts:
    """What a card says that recipe and choice do not."""

    base: BaseModel
    policies: Sequence[PolicyFacts]
    added: AddedText | None
    """What its prompts must say."""
    summary: Summary | None


def card_text(recipe: Recipe, choice: Choice, facts: CardFacts) -> str:
    """The whole card: the same for the same run, without a date or a path of this machine."""
    title = f"{recipe.name}: {candidate_label(recipe, choice)} ({choice.method})"
    summary = facts.summary
    return TEMPLATES.get_template("card.md").render(
        vars(facts),
        front_matter=front_matter(recipe, choice, title, facts.base, summary),
        title=title,
        choice=choice,
        row=choice.row,
        start=next((row for row in summary.rows if row.method is None), None) if summary else None,
        values=", ".join(recipe.trained_values()),
        datasets=hub_datasets(recipe),
        confidence=f"{100 * summary.confidence:g} %" if summary else None,
        judges={value: _judge(recipe, value) for value in recipe.values},
        judged_by_own=all(value.judge is None for value in recipe.values.values()),
        decimals=_decimals(summary) if summary else {},
        max_new_tokens=recipe.evaluation.max_new_tokens,
        candidates=sum(row.method is not None for row in summary.rows) if summary else 0,
        limits=_limits(recipe, choice, summary),
        box=recipe.soup.box,
        version=__version__,
        recipe=recipe.name,
        kind=recipe.methods[choice.method].kind,
        settings=_settings(recipe, choice),
    )


def _limits(recipe: Recipe, choice: Choice, summary: Summary | None) -> list[str]:
    """What the method, and the numbers of its prompts and seeds, do not let a reader conclude."""
    notes = methods_of(recipe)[choice.method].notes(recipe)
    found = [f"{note[0].upper()}{note[1:]}." for note in notes]
    if summary is None or choice.row is None:
        return found
    own = tuple(each for each in summary.methods if each.method == choice.method)
    return found + limits(replace(summary, methods=own), [])


def _decimals(summary: Summary) -> dict[str, int]:
    """As many for each value as the run's range deserves."""
    scale = summary.scale
    return {value: decimals_for(scale.high[value] - scale.low[value]) for value in summary.values}


def _judge(recipe: Recipe, value: str) -> str:
    """The reward that judges a value, without folders of this machine."""
    reward = recipe.judge_of(value)
    match reward:
        case ClassifierReward():
            local = recipe.local_path(reward.classifier)
            return reward.classifier if local is None else local.resolve().name
        case CallableReward():
            return reward.callable.rpartition("/")[2]
    return "columns"


def _settings(recipe: Recipe, choice: Choice) -> str:
    """The sections of the recipe that decide what the model becomes, as YAML."""
    sections = {*SHOWN, "soup" if choice.candidate.is_soup else "reweighting"}
    shown = recipe.model_dump(mode="json", exclude_unset=True, include=sections)
    shown["methods"] = {choice.method: shown.get("methods", {}).get(choice.method, {})}
    for section in filter(None, map(shown.get, ("training", "sft"))):
        for key in OF_THE_MACHINE:
            section.pop(key, None)
    return yaml.safe_dump(shown, sort_keys=False).rstrip()


TEMPLATES = Environment(
    loader=PackageLoader("vcsoup_dist.pick", "."),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
"""Markdown: nothing is escaped. Names of a recipe hold letters, digits, `.`, `_`, `-` only."""
TEMPLATES.filters |= {"fixed": fixed, "number": number}
