"""The door of stage 2: makes `filtered/<method>/<value>`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vcsoup_dist.consistency.candidates import DatasetScores, gather, scales
from vcsoup_dist.consistency.filtered_files import PAIRS, sort_by_id, write_filtered
from vcsoup_dist.consistency.filtering import Choice, account, choose
from vcsoup_dist.consistency.plots import plot_consistency, plot_gaps
from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_atomically
from vcsoup_dist.recipe import Consistency, Recipe
from vcsoup_dist.scoring.pair_files import HELD_OUT, read_manifest, train_slices
from vcsoup_dist.scoring.score_files import read_scores
from vcsoup_dist.workspace import Product, Workspace

log = logging.getLogger("vcsoup")

REPORT = "report.json"


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make the products of stage `filter`: the pairs that a method keeps for a value.

    Raises UserError where a reward has no spread or nothing is kept.
    """
    for product in products:
        with workspace.making(product) as draft:
            report = _make_one(recipe.consistency, workspace, product, draft.output)
        log.info(
            "%s: keeps %d of %d pairs; dropped: %s",
            product.name, report["kept"], report["pairs"], _listed(report["dropped"]),
        )  # fmt: skip


def _make_one(
    settings: Consistency, workspace: Workspace, product: Product, output: Path
) -> dict[str, Any]:
    values: list[str] = product.made_from["values"]
    scores = _scores(workspace, product, values, "shards")
    scale = scales(scores, values, settings.normalisation, settings.scope)
    pairs = {str(each.dataset): workspace.need(each) for each in product.inputs_of("read")}
    own = values.index(str(product.value)) if product.made_from["by_own_reward"] else None
    candidates = gather({dataset: scores[dataset] for dataset in pairs}, scale, own)
    choice = choose(str(product.method), settings, candidates, _size_to_copy(workspace, product))
    report = {
        "method": product.method,
        "value": product.value,
        "values": values,
        "datasets": list(pairs),
        "settings": product.made_from["consistency"],
        **account(candidates, choice),
        "scale": {
            dataset: dict(zip(values, scale[dataset].tolist(), strict=True)) for dataset in scores
        },
    }
    _refuse_nothing(product, choice, report)
    files = [part.file for folder in pairs.values() for part in train_slices(folder)]
    write_filtered(output / PAIRS, files, candidates, choice, values)
    by_threshold = product.method == "vc_soup" and settings.policy == "threshold"
    threshold = settings.threshold if by_threshold else None
    plot_consistency(output / "histogram.png", choice.cosines, choice.kept, threshold)
    plot_gaps(output / "gaps.png", candidates.gaps, values)
    scores = _scores(workspace, product, values, "heldout")
    candidates = gather({dataset: scores[dataset] for dataset in pairs}, scale, own)
    choice = choose("rewarded_soup", settings, candidates)  # held-out pairs are not filtered
    files = [folder / HELD_OUT for folder in pairs.values()]
    write_filtered(output / HELD_OUT, files, candidates, choice, values)
    sort_by_id(output / HELD_OUT)
    report["heldout"] = account(candidates, choice)
    write_atomically(output / REPORT, json.dumps(report, indent=1) + "\n")
    return report


def _scores(
    workspace: Workspace, product: Product, values: Sequence[str], part: str
) -> dict[str, DatasetScores]:
    """Rewards of the training pairs (`shards`) or `heldout` ones of every scored dataset."""
    inputs = {(each.dataset, each.value): each for each in product.inputs_of("score")}
    found = {}
    for dataset in dict.fromkeys(str(dataset) for dataset, _ in inputs):
        ids: list[str] = []
        chosen, rejected = [], []
        for value in values:
            folder = workspace.need(inputs[dataset, value])
            parts = [read_scores(folder / each["file"]) for each in read_manifest(folder)[part]]
            own_ids = [identity for each in parts for identity in each.ids]
            assert not ids or own_ids == ids
            ids = own_ids
            chosen.append(np.concatenate([np.zeros(0), *(each.chosen for each in parts)]))
            rejected.append(np.concatenate([np.zeros(0), *(each.rejected for each in parts)]))
        found[dataset] = DatasetScores(ids, np.stack(chosen, axis=1), np.stack(rejected, axis=1))
    return found


def _size_to_copy(workspace: Workspace, product: Product) -> int | None:
    """How many pairs `vc_soup` keeps, for the method `random`."""
    if product.method != "random":
        return None
    (copied,) = product.inputs_of("filter")
    return int(json.loads((workspace.need(copied) / REPORT).read_text())["kept"])


def _refuse_nothing(product: Product, choice: Choice, report: dict[str, Any]) -> None:
    if report["kept"]:
        return
    reason = max(choice.dropped, key=lambda name: choice.dropped[name])
    mend = {
        "below min_norm": "lower consistency.min_norm",
        "zero gap": "its rewards cannot tell the answers apart; take other rewards",
        "tie of its own reward": "its reward cannot tell the answers apart; take another one",
        "by policy": "lower consistency.threshold, take the policy `ratio`, or drop the method",
    }
    raise UserError(
        f"{product.name}: the method {product.method} keeps none of {report['pairs']} pairs for "
        f"the value {product.value} (dropped: {_listed(choice.dropped)}); {mend[reason]}"
    )


def _listed(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none"
