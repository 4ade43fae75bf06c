"""What `vcsoup check` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vcsoup_dist.check.cost import Cost, estimate, estimate_training
from vcsoup_dist.check.data import check_files
from vcsoup_dist.check.method_costs import costs_table, plan_costs
from vcsoup_dist.check.model import check_model
from vcsoup_dist.check.reward_models import check_reward_models
from vcsoup_dist.check.slurm import check_slurm
from vcsoup_dist.check.steps import plan_steps, step_warnings, steps_table
from vcsoup_dist.pipeline.graph import to_make
from vcsoup_dist.pipeline.stages import STAGES
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.training.metrics import lacks_wandb
from vcsoup_dist.workspace import Product, Workspace


def show_check(recipe: Recipe, workspace: Workspace, plan: Sequence[Product]) -> None:
    """The plan by stage, and its cost; raises UserError where local data does not fit."""
    data = check_files(recipe, plan)
    to_be_made = to_make(plan, workspace, recipe)
    missing = {product.name for product in to_be_made}
    warnings = check_reward_models(recipe, plan, to_be_made)
    warnings += check_model(recipe, plan, {product.stage for product in to_be_made})
    warnings += check_slurm(recipe)
    warnings += filter(None, [lacks_wandb(recipe.launch.wandb)])
    table = Table(title=f"{recipe.name} in {workspace.root}", title_justify="left")
    for column in ("stage", "made", "to make", "for example"):
        table.add_column(column, overflow="fold")
    for stage in STAGES:
        products = [product for product in plan if product.stage == stage]
        if products:
            due = [product for product in products if product.name in missing]
            made = sum(workspace.is_made(product) for product in products)
            table.add_row(stage, str(made), str(len(due)), (due or products)[0].name)
    console = Console()
    console.print(table)
    for line in data:
        style = "bold red" if line.startswith("warning") else None
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
    for name, method in recipe.methods.items():
        for line in method.notes(recipe):
            console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)
    steps = plan_steps(recipe, workspace, plan)
    console.print(steps_table(steps))
    warnings += step_warnings(steps)
    cost = estimate(recipe, workspace, plan)
    console.print(costs_table(plan_costs(recipe, workspace, plan, steps, cost)))
    _show_cost(cost, console, warnings)
    if any(product.stage == "train" and product.name in missing for product in plan):
        _show_training(recipe, console)


def _show_cost(cost: Cost, console: Console, warnings: list[str]) -> None:
    """The cost, and the warnings so far and of the disk."""
    unknown = "unknown before the download"
    lines = {
        "pairs (held-out ones included)": _number(cost.pairs, unknown),
        "tokens of text, about": _number(cost.tokens, unknown),
        "parameters of a policy": _number(cost.parameters, unknown),
        "weights and text to read": _bytes(cost.read_bytes, unknown),
        "weights and text to write": _bytes(cost.written_bytes, unknown),
        "disk needed at most, about": _bytes(cost.peak_disk_bytes, unknown),
        "disk free": _bytes(cost.free_disk_bytes, unknown),
    }
    for name, text in lines.items():
        console.print(f"{name:32} {text}", highlight=False)
    if cost.peak_disk_bytes is not None and cost.peak_disk_bytes > cost.free_disk_bytes:
        warnings.append("the disk is too small for this run")
    for warning in warnings:
        console.print(f"warning: {warning}", style="bold red", soft_wrap=True)


def _show_training(recipe: Recipe, console: Console) -> None:
    """Memory of training a policy, and what this machine lacks of it."""
    needs = estimate_training(recipe)
    if needs is None:
        console.print(f"{'training by':32} unknown before the download", highlight=False)
        return
    memory, ranks = needs.memory, needs.ranks
    device = "  memory of a GPU, about" if needs.on_gpus else "  memory of a rank (no GPU)"
    without = "" if memory.activations is not None else " and activations, not known"
    lines = {
        "training by": f"{needs.config} on {ranks} rank{'' if ranks == 1 else 's'}",
        device: _gib(memory.gpu) + without,
        "  host memory, about": f"{_gib(needs.host_bytes)} of {_gib(needs.machine_bytes)}",
    }
    if memory.nvme:
        lines["  on NVMe, about"] = _gib(memory.nvme)
    for name, text in lines.items():
        console.print(f"{name:32} {text}", highlight=False)
    for warning in needs.warnings:
        console.print(f"warning: {warning}", style="bold red", soft_wrap=True)


def _number(value: int | None, unknown: str) -> str:
    return unknown if value is None else f"{value:,}"


def _bytes(value: int | None, unknown: str) -> str:
    return unknown if value is None else f"{value / 1e9:,.3f} GB"


def _gib(value: int) -> str:
    return f"{value / 2**30:,.2f} GiB"
