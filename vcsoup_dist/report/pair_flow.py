"""What became of the rows of the data on their way into the gradients of every policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.pairs import PairsManifest
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.records.union import UnionManifest
from vcsoup_dist.workspace import Product, Workspace


@dataclass(frozen=True)
class PairFlow:
    """Policies of a method that saw the same pairs in as many steps, whatever their seeds."""

    method: str
    policies: tuple[str, ...]
    """The values, or the trade-offs, that they are trained for."""
    read: int
    """Rows of the datasets that they train on."""
    unusable: int
    """Rows that are faulty."""
    other: int
    """Sound rows that are no training pair: held out, duplicates, other halves, without a pair."""
    scored: int
    """Training pairs that have all rewards."""
    kept: int
    """By the method's filter, or of the union. For SFT answers, two of each pair."""
    left_out: Mapping[str, int]
    """Reason -> of the kept ones those that are not trained on."""
    trained: int
    """What is left of them."""
    steps: int
    passes: float
    """Over the trained pairs, in these steps."""
    of_answers: bool
    """Whether `kept`, `left_out` and `trained` count answers in place of pairs."""


def pair_flows(recipe: Recipe, workspace: Workspace, product: Product) -> list[PairFlow]:
    """Of all policies that a report is made from, in their order."""
    found: dict[str, PairFlow] = {}
    for policy in product.inputs_of("train"):
        flow = _flow(recipe, workspace, policy)
        key = repr(replace(flow, policies=()))
        names = found[key].policies if key in found else ()
        found[key] = replace(flow, policies=tuple(dict.fromkeys((*names, *flow.policies))))
    return list(found.values())


def _flow(recipe: Recipe, workspace: Workspace, policy: Product) -> PairFlow:
    manifests = [PairsManifest.read(workspace.need(each)) for each in policy.inputs_of("read")]
    trained = TrainingSummary.read(workspace.need(policy))
    read, unusable = (
        sum(numbers)
        for numbers in zip(
            *((each.rows, sum(each.rejected.values())) for each in manifests), strict=True
        )
    )
    pairs = sum(each.train for each in manifests)
    method = str(policy.method)
    return PairFlow(
        method=method,
        policies=(policy.value or policy.name.split("/")[2],),
        read=read,
        unusable=unusable,
        other=read - unusable - pairs,
        scored=pairs - _unscored(workspace, policy),
        kept=trained.pairs + sum(trained.pairs_left_out.values()),
        left_out=trained.pairs_left_out,
        trained=trained.pairs,
        steps=trained.steps,
        passes=trained.passes,
        of_answers=recipe.methods[method].training(recipe).objective == "sft",
    )


def _unscored(workspace: Workspace, policy: Product) -> int:
    """Training pairs that lack a reward."""
    sets = [FilterReport.read(workspace.need(each)) for each in policy.inputs_of("filter")]
    unions = [UnionManifest.read(workspace.need(each)) for each in policy.inputs_of("union")]
    return sum(each.counts.unscored for each in sets) + sum(each.without_reward for each in unions)
