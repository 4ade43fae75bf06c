"""What was run, what a reader must know, and the commands that make the report again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from vcsoup_dist import __version__
from vcsoup_dist.in_context.targets import Target
from vcsoup_dist.recipe import CallableReward, ClassifierReward, Recipe, Sft
from vcsoup_dist.recipe.method import MethodOptions
from vcsoup_dist.recipe.rewards import Reward
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.records.union import UnionManifest
from vcsoup_dist.report.numbers import number
from vcsoup_dist.report.page_data import Filters, Prompts
from vcsoup_dist.turns import in_turns
from vcsoup_dist.workspace import Product, Workspace

PACKAGES = ("torch", "transformers", "deepspeed", "ray")


def facts(
    recipe: Recipe,
    workspace: Workspace,
    product: Product,
    filters: Sequence[Filters],
    targets: Mapping[str, Target],
) -> dict[str, str]:
    """What was run: term -> fact; targets: by evaluation."""
    rewards = [
        f"{name}: {_reward_text(recipe.judge_of(name))}"
        + (" (took no part in filtering)" if value.judge else "")
        for name, value in recipe.values.items()
    ]
    steps = {
        TrainingSummary.read(workspace.need(each)).steps for each in product.inputs_of("train")
    }
    return {
        "base model": recipe.model,
        **({"theta_0": _sft_text(recipe, workspace, product)} if recipe.sft else {}),
        "judged by": "; ".join(rewards),
        "methods": ", ".join(
            name + _own_settings(recipe, method) for name, method in recipe.methods.items()
        ),
        **({"soups": _box_text(recipe.soup.box)} if recipe.soup.box else {}),
        **{
            f"filter of {name}": _filter_text(report)
            for name, report in (filters[0].reports.items() if filters else ())
            if recipe.methods[name].kind == "vc_soup"
        },
        **_temperatures(workspace, product),
        **_targets(product, targets),
        "training": f"{recipe.training.objective}, {_range(steps)} steps of "
        f"{recipe.training.pairs_per_step} pairs, learning rate {recipe.training.learning_rate:g}",
        "seeds": ", ".join(map(str, recipe.seeds)),
        "versions": ", ".join(
            [f"vcsoup_dist {__version__}", *(f"{name} {version(name)}" for name in PACKAGES)]
        ),
    }


def notes(recipe: Recipe, prompts: Sequence[Prompts], targets: Mapping[str, Target]) -> list[str]:
    """What a reader must know before trusting the numbers."""
    found = []
    if all(value.judge is None for value in recipe.values.values()):
        found.append(
            "The rewards that filtered the pairs also judge the soups, and a filter can overfit "
            "its own rewards. Name a `judge` per value for an independent view."
        )
    for name, method in recipe.methods.items():
        found += [f"{name}: {line}." for line in method.notes(recipe)]
    for name, target in targets.items():
        found += [f"{name}: {fault}." for fault in filter(None, [target.fault()])]
    overlap = sum(len(each.in_training) for each in prompts)
    if overlap:
        found.append(f"{overlap} evaluation prompts occur in training data; see the list below.")
    return found


def commands_for(product: Product) -> list[str]:
    """The commands that make a product: all at once, or stage by stage."""
    made: dict[str, Product] = {}

    def visit(each: Product) -> None:
        for one in each.inputs:
            if one.name not in made:
                visit(one)
        made[each.name] = each

    visit(product)
    plan = list(made.values())
    commands = dict.fromkeys(each.command for each in plan)
    turns = in_turns(plan, commands, lambda each: each.command, lambda each: each.inputs)
    stages = [f"vcsoup {command} recipe.yaml" for command, _ in turns]
    return ["vcsoup run recipe.yaml   # or, stage by stage:", *stages]


def _reward_text(reward: Reward) -> str:
    match reward:
        case ClassifierReward():
            return reward.classifier
        case CallableReward():
            return reward.callable
    return "columns"


def _own_settings(recipe: Recipe, method: MethodOptions) -> str:
    """Where they differ from the recipe's."""
    own = {"learning rate": method.learning_rate, "beta": method.beta}
    shown = [f"{name} {value:g}" for name, value in own.items() if value is not None]
    training = method.training(recipe)
    if training.objective != recipe.training.objective:
        shown.insert(0, f"{training.objective} on {training.pairs_per_step} answers a step")
    return f" ({', '.join(shown)})" if shown else ""


def _temperatures(workspace: Workspace, product: Product) -> dict[str, str]:
    """a_j of every value, and how often its reward agrees with held-out pairs."""
    if not product.inputs_of("union"):
        return {}
    union = UnionManifest.read(workspace.need(product.inputs_of("union")[0]))
    shown = []
    for value, found in union.temperatures.items():
        a = "none" if found.a is None else f"{found.a:.3g} per unit of reward"
        capped = ", the largest allowed" if found.capped else ""
        source = (
            "from the other values"
            if found.agree is None
            else f"the reward agrees with {found.agree:.0%} of {found.pairs} held-out pairs"
        )
        shown.append(f"{value}: {a}{capped} ({source})")
    return {"temperatures": "; ".join(shown)}


def _targets(product: Product, targets: Mapping[str, Target]) -> dict[str, str]:
    """What the prompts of each method that writes scores into them ask for."""
    found: dict[str, list[str]] = {}
    for each in product.inputs_of("evaluate"):
        if target := targets.get(each.name):
            weights = ", ".join(f"{weight:g}" for weight in target.asked.weights)
            lines = found.setdefault(f"scores that {each.method} asks for", [])
            lines.append(f"λ = ({weights}): {target.text()}")
    return {term: "; ".join(dict.fromkeys(lines)) for term, lines in found.items()}


def _sft_text(recipe: Recipe, workspace: Workspace, product: Product) -> str:
    (theta_0,) = product.inputs_of("sft")
    sft = recipe.sft or Sft()
    steps = TrainingSummary.read(workspace.need(theta_0)).steps
    return (
        f"base model after {steps} steps of sft on {sft.pairs_per_step} chosen answers "
        f"each, learning rate {sft.learning_rate:g}"
    )


def _box_text(box: Sequence[float]) -> str:
    low, high = (number(bound) for bound in box)
    return f"θ₀ + Σ λᵢ (θᵢ − θ₀) with every λᵢ from {low} to {high}, whatever their sum"


def _filter_text(report: FilterReport) -> str:
    rule = report.rule
    ratio = f"{rule.ratio or 0:.0%}"
    kept = {
        "threshold": f"consistency ≥ {rule.threshold or 0:g}",
        "ratio": f"the best {ratio} by consistency",
        "all_positive": "all gaps positive",
        "random": f"a random {ratio}",
    }[rule.kind]
    return f"{kept}, gaps scaled by {report.normalisation}"


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
