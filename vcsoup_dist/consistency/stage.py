"""The door of stage 2: makes `filtered/<method>/<value>`.

Three passes over blocks of shards: the scale of each reward; what is known of every pair in a few
bytes, by which this process decides; the kept pairs in full.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.blocks import training_blocks
from vcsoup_dist.consistency.candidates import (
    COMPARED_BEFORE,
    HELD_OUT_ELSEWHERE,
    NO_REWARD,
    OWN_TIE,
    SHORT,
    ZERO_GAP,
)
from vcsoup_dist.consistency.comparison import compare, conflict_matrix
from vcsoup_dist.consistency.filtered_files import write_part
from vcsoup_dist.consistency.filtering import BY_POLICY, account, choose
from vcsoup_dist.consistency.judgement import (
    Inputs,
    Judgement,
    extremes,
    judge_pairs,
    parts_of,
    write_all_heldout,
)
from vcsoup_dist.consistency.page import CORRELATION, GAPS, HISTOGRAM, write_page
from vcsoup_dist.consistency.plots import plot_consistency, plot_correlation, plot_gaps
from vcsoup_dist.consistency.scales import Scale
from vcsoup_dist.consistency.shard_map import Run, runner
from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_atomically
from vcsoup_dist.progress import progress
from vcsoup_dist.recipe import Consistency, Recipe
from vcsoup_dist.records.keep_rule import KeepRule
from vcsoup_dist.scoring.pair_files import HELD_OUT, read_manifest
from vcsoup_dist.workspace import Draft, Product, Workspace

log = logging.getLogger("vcsoup")

REPORT, PAGE = "report.json", "report.md"
ON_CLUSTER = 1 << 29
"""From so many bytes of pairs to go through on, Ray tasks gain more than Ray's start takes."""


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make the products of stage `filter`: the pairs that a method keeps for a value.

    Products that judge the same pairs alike share that work. Raises UserError where a reward has
    no spread or nothing is kept.
    """
    groups: dict[tuple[Any, ...], list[Product]] = {}
    for product in products:
        settings = _settings(product)
        key = (product.value, settings.normalisation, settings.scope, settings.min_norm)
        groups.setdefault(key, []).append(product)
    inputs = [_inputs(workspace, group[0]) for group in groups.values()]
    work = sum(
        len(group) * _size(each) for each, group in zip(inputs, groups.values(), strict=True)
    )
    scales: dict[tuple[str, ...], Scale] = {}
    with runner(recipe.launch, workspace.root, work >= ON_CLUSTER) as run:
        for each, group in zip(inputs, groups.values(), strict=True):
            _make_group(workspace, group, judge_pairs(each, run, scales), run)


def _settings(product: Product) -> Consistency:
    """The settings that decide a product; a random subset has those of the set it copies."""
    rule = rule_of(product)
    if rule.kind == "as_many_as":
        rule = rule_of(product.inputs_of("filter")[0])
    given = rule.as_json() | product.made_from["consistency"]
    kind = given.pop("kind")
    return Consistency.model_validate(given | ({} if kind == "all" else {"rule": kind}))


def rule_of(product: Product) -> KeepRule:
    """What a filtered set keeps."""
    return KeepRule.from_json(product.made_from["rule"])


METHODS = {"all": "rewarded_soup", "all_positive": "all_positive", "as_many_as": "random"}


def _inputs(workspace: Workspace, product: Product) -> Inputs:
    values: list[str] = product.made_from["values"]
    pairs = {str(each.dataset): workspace.need(each) for each in product.inputs_of("read")}
    folders = {
        (str(each.dataset), str(each.value)): workspace.need(each)
        for each in product.inputs_of("score")
    }
    datasets = dict.fromkeys(dataset for dataset, _ in folders)
    scores = {dataset: [folders[dataset, value] for value in values] for dataset in datasets}
    return Inputs(
        value=str(product.value),
        values=values,
        settings=_settings(product),
        own=values.index(str(product.value)) if product.made_from["by_own_reward"] else None,
        pairs=pairs,
        scores=scores,
        blocks=[
            block
            for dataset, folder in pairs.items()
            for block in training_blocks(dataset, folder, scores[dataset])
        ],
    )


def _size(inputs: Inputs) -> int:
    """Bytes of the files of pairs."""
    return sum(file.stat().st_size for block in inputs.blocks for file in block.pairs)


def _make_group(
    workspace: Workspace, products: Sequence[Product], judgement: Judgement, run: Run
) -> None:
    """Make products that judge the same pairs alike, and so have some files in common."""
    columns = judgement.candidates.columns
    cosines, usable = columns.cosines, columns.usable
    most, least = (extremes(judgement, keys) for keys in (-cosines, cosines))
    first: Path | None = None
    for product in products:
        with workspace.publishing(product) as draft:
            kept, report = _keep(workspace, judgement, draft, run)
            if first is None:
                report["heldout"] = _write_common(judgement, draft.output)
            else:
                for name in (HELD_OUT, GAPS, CORRELATION):
                    shutil.copyfile(first / name, draft.output / name)
                report["heldout"] = json.loads((first / REPORT).read_text())["heldout"]
            threshold = rule_of(product).threshold
            values = len(judgement.inputs.values)
            plot_consistency(
                draft.output / HISTOGRAM, cosines[usable], kept[usable], threshold, values
            )
            write_page(draft.output / PAGE, report, most, least)
            write_atomically(draft.output / REPORT, json.dumps(report, indent=1) + "\n")
        first = first or workspace.folder(product)
        log.info(
            "%s: keeps %d of %d pairs; dropped: %s; its page: %s",
            product.name, report["kept"], report["pairs"], _listed(report["dropped"]),
            workspace.folder(product) / PAGE,
        )  # fmt: skip


def _keep(
    workspace: Workspace, judgement: Judgement, draft: Draft, run: Run
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """Write what a product's method keeps; returns its mask [P], and the report."""
    product, inputs, candidates = draft.product, judgement.inputs, judgement.candidates
    kind, values, settings = rule_of(product).kind, inputs.values, _settings(product)
    method = METHODS.get(kind, "vc_soup")
    own_policy = settings if method in ("vc_soup", "random") else None
    size = _size_to_copy(workspace, product)
    kept = choose(method, settings, candidates.columns, len(values), size)
    counts = account(candidates, kept, method, len(values))
    _refuse_nothing(product, counts)
    parts = parts_of(judgement, kept, draft.output)
    files: list[dict[str, Any]] = [
        {"file": each.file.name, "rows": int(each.part.kept.sum())} for each in parts
    ]
    with progress(f"{product.name}: writing", counts["kept"], "pairs") as advance:
        for each, _ in zip(files, run(write_part, parts, draft.workers_lock), strict=True):
            advance(each["rows"])
    return kept, {
        "method": str(product.method),
        "filter": method,
        "value": inputs.value,
        "values": values,
        "datasets": list(inputs.pairs),
        "settings": settings.model_dump(mode="json"),
        **counts,
        "scale": {
            dataset: dict(zip(values, scale.s.tolist(), strict=True))
            for dataset, scale in judgement.scale.items()
        },
        "equal_pairs": {
            dataset: {
                value: read_manifest(folder)["equal_pairs"]
                for value, folder in zip(values, inputs.scores[dataset], strict=True)
            }
            for dataset in inputs.pairs
        },
        "correlation": candidates.gaps.correlation(),
        "conflicts": conflict_matrix(counts["sign_patterns"]).tolist(),
        "comparison": compare(candidates.columns, own_policy, len(values)),
        "files": files,
    }


def _write_common(judgement: Judgement, output: Path) -> dict[str, Any]:
    """Write what does not depend on the method; returns the counts of the held-out pairs."""
    values, candidates = judgement.inputs.values, judgement.candidates
    plot_gaps(output / GAPS, candidates.sample, values)
    plot_correlation(output / CORRELATION, candidates.gaps.correlation(), values)
    return write_all_heldout(judgement, output / HELD_OUT)


def _size_to_copy(workspace: Workspace, product: Product) -> int | None:
    """How many pairs `vc_soup` keeps, for the method `random`."""
    if rule_of(product).kind != "as_many_as":
        return None
    (copied,) = product.inputs_of("filter")
    return int(json.loads((workspace.need(copied) / REPORT).read_text())["kept"])


MEND = {
    HELD_OUT_ELSEWHERE: "give its datasets the same `heldout`, or the same `heldout_share`",
    COMPARED_BEFORE: "name other datasets",
    NO_REWARD: "see the column `failure` of its scores",
    OWN_TIE: "its reward cannot tell the answers apart; take another one",
    ZERO_GAP: "its rewards cannot tell the answers apart; take other rewards",
    SHORT: "lower consistency.min_norm",
    BY_POLICY: "lower consistency.threshold, take the rule `ratio`, or drop the method",
}


def _refuse_nothing(product: Product, counts: dict[str, Any]) -> None:
    if counts["kept"]:
        return
    dropped: dict[str, int] = counts["dropped"]
    reason = max(dropped, key=lambda name: dropped[name])
    raise UserError(
        f"{product.name}: the method {product.method} keeps none of {counts['pairs']} pairs for "
        f"the value {product.value} (dropped: {_listed(dropped)}); {MEND[reason]}"
    )


def _listed(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none"
