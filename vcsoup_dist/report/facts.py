"""What was run, what a reader must know, and the commands that make the report again."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import TopologicalSorter
from importlib.metadata import version

from vcsoup_dist import __version__
from vcsoup_dist.recipe import CallableReward, ClassifierReward, Recipe, Sft
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.report.page_data import Prompts
from vcsoup_dist.workspace import Product, Workspace

PACKAGES = ("torch", "transformers", "deepspeed", "ray")


def facts(recipe: Recipe, workspace: Workspace, product: Product) -> dict[str, str]:
    """What was run: term -> fact."""
    rewards = []
    for name in recipe.values:
        judge = recipe.judge_of(name)
        kind = (
            judge.classifier
            if isinstance(judge, ClassifierReward)
            else judge.callable
            if isinstance(judge, CallableReward)
            else "columns"
        )
        other = " (took no part in filtering)" if recipe.values[name].judge else ""
        rewards.append(f"{name}: {kind}{other}")
    steps = {
        TrainingSummary.read(workspace.need(each)).steps for each in product.inputs_of("train")
    }
    return {
        "base model": recipe.model,
        **({"theta_0": _sft_text(recipe, workspace, product)} if recipe.sft else {}),
        "judged by": "; ".join(rewards),
        "methods": ", ".join(recipe.methods),
        "filter of vc_soup": _filter_text(recipe),
        "training": f"{recipe.training.objective}, {_range(steps)} steps of "
        f"{recipe.training.pairs_per_step} pairs, learning rate {recipe.training.learning_rate:g}",
        "seeds": ", ".join(map(str, recipe.seeds)),
        "versions": ", ".join(
            [f"vcsoup_dist {__version__}", *(f"{name} {version(name)}" for name in PACKAGES)]
        ),
    }


def notes(recipe: Recipe, prompts: Sequence[Prompts]) -> list[str]:
    """What a reader must know before trusting the numbers."""
    found = []
    if all(value.judge is None for value in recipe.values.values()):
        found.append(
            "The soups are judged by the rewards that filtered the pairs, and a filter can overfit "
            "its own rewards; name a `judge` per value for an independent view."
        )
    overlap = sum(len(each.in_training) for each in prompts)
    if overlap:
        found.append(f"{overlap} evaluation prompts occur in training data; they are listed below.")
    if len(recipe.seeds) == 1:
        found.append(
            "There is one seed: the intervals are over prompts and do not show how much another "
            "training run would differ."
        )
    return found


def commands_for(product: Product) -> list[str]:
    """The commands that make a product: all at once, or stage by stage."""
    after: dict[str, set[str]] = {}
    seen: set[str] = set()

    def visit(each: Product) -> None:
        after.setdefault(each.command, set()).update(one.command for one in each.inputs)
        seen.add(each.name)
        for one in each.inputs:
            if one.name not in seen:
                visit(one)

    visit(product)
    order = TopologicalSorter({each: reads - {each} for each, reads in after.items()})
    stages = [f"vcsoup {each} recipe.yaml" for each in order.static_order()]
    return ["vcsoup run recipe.yaml   # or, stage by stage:", *stages]


def _sft_text(recipe: Recipe, workspace: Workspace, product: Product) -> str:
    (theta_0,) = product.inputs_of("sft")
    sft = recipe.sft or Sft()
    steps = TrainingSummary.read(workspace.need(theta_0)).steps
    return (
        f"base model after {steps} steps of sft on {sft.pairs_per_step} chosen answers "
        f"each, learning rate {sft.learning_rate:g}"
    )


def _filter_text(recipe: Recipe) -> str:
    rule = recipe.consistency.rule
    bound = {
        "threshold": f"consistency ≥ {recipe.consistency.threshold:g}",
        "ratio": f"the best {recipe.consistency.ratio or 0:.0%} by consistency",
        "all_positive": "all gaps positive",
        "random": f"a random {recipe.consistency.ratio or 0:.0%}",
    }[rule]
    return f"{bound}, gaps scaled by {recipe.consistency.normalisation}"


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
