"""What the stages before the evaluation counted, read from their products for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.filter_report import GAPS, HISTOGRAM, FilterReport
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.report.page_data import (
    Agreement,
    PairsRead,
    PairsScored,
    Patterns,
    Plot,
    Policy,
    Trained,
)
from vcsoup_dist.workspace import Product, Workspace


def pairs_read(workspace: Workspace, product: Product) -> PairsRead:
    """The counts of a product of stage `read`."""
    manifest = read_json(workspace.folder(product) / "manifest.json")
    return PairsRead(
        dataset=str(product.dataset),
        rows=manifest["rows"],
        training=manifest["train"],
        heldout=manifest["heldout"],
        duplicates=manifest["duplicates"],
        leaked=manifest["heldout_in_train_pairs"],
        rejected=manifest["rejected"],
        left_out=manifest["left_out"],
        joined=manifest["joined"],
        returned_prompts=manifest["returned_prompts"],
    )


def pairs_scored(workspace: Workspace, product: Product) -> list[PairsScored]:
    """The statistics of every reward that took part in a filter, by dataset."""
    scores = {
        score.name: score
        for filtered in product.inputs_of("filter")
        for score in filtered.inputs_of("score")
    }
    found = []
    for each in scores.values():
        summary = read_json(workspace.need(each) / "manifest.json")
        found.append(
            PairsScored(
                dataset=str(each.dataset),
                value=str(each.value),
                pairs=summary["rows"],
                unscored=summary["unscored"],
                reasons=summary["reasons"],
                truncated=summary["truncated"],
                mean=summary["mean"],
                std=summary["std"],
            )
        )
    return found


def filter_reports(
    recipe: Recipe, workspace: Workspace, product: Product
) -> dict[str, dict[str, FilterReport]]:
    """Value -> method -> report of its filtered set."""
    return {
        value: {
            str(each.method): FilterReport.read(workspace.need(each))
            for each in product.inputs_of("filter")
            if each.value == value
        }
        for value in recipe.trained_values()
    }


def patterns(value: str, reports: Mapping[str, FilterReport]) -> Patterns:
    """The sign patterns of a value's pairs, which are the same for every method."""
    every = next(iter(reports.values())).counts.sign_patterns
    kept = {method: report.counts.sign_patterns_kept for method, report in reports.items()}
    return Patterns(value, every, kept)


def agreement(value: str, reports: Mapping[str, FilterReport]) -> Agreement:
    """As `vc_soup` reports it where it takes part: its comparison marks the recipe's rule."""
    report = reports.get("vc_soup", next(iter(reports.values())))
    policies = [
        Policy(each.name, each.count, each.share, each.all_positive, each.is_own)
        for each in report.comparison.rules
    ]
    return Agreement(value, report.conflicts, report.correlation, policies)


def consistency_plots(workspace: Workspace, product: Product) -> list[Plot]:
    """Two plots per value, of `vc_soup`'s filtered set where it takes part."""
    shown: dict[str | None, Product] = {}
    for each in product.inputs_of("filter"):
        if each.value not in shown or each.method == "vc_soup":
            shown[each.value] = each
    found = []
    for each in shown.values():
        folder = workspace.need(each)
        for name, caption in (
            (HISTOGRAM, f"{each.value}: consistency of its pairs, as {each.method} sees it"),
            (GAPS, f"{each.value}: gaps of its pairs, by sign pattern"),
        ):
            found.append(Plot(caption, (folder / name).read_bytes()))
    return found


def trained(workspace: Workspace, product: Product) -> Trained:
    """The end of a policy's training curve."""
    summary = TrainingSummary.read(workspace.need(product))
    last = {"steps": summary.steps, "pairs": summary.pairs, "passes": summary.passes}
    for prefix, metrics in (("", summary.last_step), ("heldout_", summary.heldout)):
        if metrics is not None:
            last |= {prefix + name: x for name, x in vars(metrics).items() if x is not None}
    return Trained(str(product.method), str(product.value), product.seed or 0, last)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content
