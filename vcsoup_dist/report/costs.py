"""What every method's training took, from the logs of its steps and the files that it left."""

from __future__ import annotations

from pathlib import Path

from vcsoup_dist.records.step_metrics import METRICS, StepMetrics
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.report.statistics.cost import MethodCost, StepsTaken, method_cost, steps_taken
from vcsoup_dist.workspace import Product, Workspace


def costs(workspace: Workspace, product: Product) -> list[MethodCost]:
    """Of every method whose policies a report is made from."""
    policies: dict[str, list[Product]] = {}
    for each in product.inputs_of("train"):
        policies.setdefault(str(each.method), []).append(each)
    soups = {
        each.name: each for one in product.inputs_of("evaluate") for each in one.inputs_of("merge")
    }
    found = []
    for method, mine in policies.items():
        steps = [TrainingSummary.read(workspace.need(each)).steps for each in mine]
        models = [*mine, *(each for each in soups.values() if each.method == method)]
        disk = sum(_size(workspace.folder(each)) for each in models)
        found.append(method_cost(method, steps, [logged_steps(workspace, e) for e in mine], disk))
    return found


def logged_steps(workspace: Workspace, policy: Product) -> StepsTaken | None:
    """What a policy's log of steps says; None where there is none, or it is not whole."""
    return steps_taken(step_log(workspace, policy))


def step_log(workspace: Workspace, policy: Product) -> list[StepMetrics]:
    """The steps in a policy's log; none where it is gone."""
    try:
        lines = (workspace.root / "logs" / policy.name / METRICS).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [each for line in lines if (each := StepMetrics.from_line(line))]


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
