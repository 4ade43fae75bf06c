"""Entry of stage 2: makes `filtered/<method>/<name>`.

Three passes over blocks of pairs: the scale of each reward; what is measured of every pair, in a
few bytes, from which this process decides; the kept pairs in full.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.blocks import training_blocks
from vcsoup_dist.consistency.comparison import compare, conflict_matrix
from vcsoup_dist.consistency.counts import BY_RULE, count_pairs
from vcsoup_dist.consistency.filtered_files import write_part
from vcsoup_dist.consistency.measured_pairs import (
    COMPARED_BEFORE,
    HELD_OUT_ELSEWHERE,
    NO_REWARD,
    OWN_TIE,
    SHORT,
    ZERO_GAP,
)
from vcsoup_dist.consistency.page import write_page
from vcsoup_dist.consistency.plots import plot_consistency, plot_correlation, plot_gaps
from vcsoup_dist.consistency.rules import keep
from vcsoup_dist.consistency.scales import Scale
from vcsoup_dist.consistency.value_pairs import (
    FilterInputs,
    ValuePairs,
    extremes,
    measure_value,
    parts_of,
    write_all_heldout,
)
from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.task_map import Run, runner
from vcsoup_dist.progress import progress
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.filter_report import (
    CORRELATION,
    GAPS,
    HISTOGRAM,
    PAGE,
    FilterReport,
    HeldOut,
    PairCounts,
)
from vcsoup_dist.records.filtered_pairs import HELD_OUT
from vcsoup_dist.records.keep_rule import KeepRule
from vcsoup_dist.records.pairs import PairsFile
from vcsoup_dist.records.scores import ScoresManifest
from vcsoup_dist.workspace import Draft, Product, Workspace

log = logging.getLogger("vcsoup")

ON_CLUSTER = 1 << 29
"""From this many bytes of pairs to read, Ray tasks gain more than the start of Ray takes."""


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make the products of stage `filter`: the pairs that a method keeps for a value.

    Products that measure the same pairs alike share that work. Raises UserError where a reward has
    no spread or nothing is kept.
    """
    groups: dict[tuple[Any, ...], list[Product]] = {}
    for product in products:
        key = (
            product.value,
            *product.made_from["consistency"].values(),
            rule_of(product).min_norm,
        )
        groups.setdefault(key, []).append(product)
    inputs = [_inputs(workspace, group[0]) for group in groups.values()]
    work = sum(
        len(group) * _size(each) for each, group in zip(inputs, groups.values(), strict=True)
    )
    scales: dict[tuple[str, ...], Scale] = {}
    with runner(recipe.launch, workspace.root, work >= ON_CLUSTER) as run:
        for each, group in zip(inputs, groups.values(), strict=True):
            _make_group(workspace, group, measure_value(each, run, scales), run)


def rule_of(product: Product) -> KeepRule:
    """What a filtered set keeps."""
    return KeepRule.from_json(product.made_from["rule"])


def _inputs(workspace: Workspace, product: Product) -> FilterInputs:
    values: list[str] = product.made_from["values"]
    pairs = {str(each.dataset): workspace.need(each) for each in product.inputs_of("read")}
    folders = {
        (str(each.dataset), str(each.value)): workspace.need(each)
        for each in product.inputs_of("score")
    }
    datasets = dict.fromkeys(dataset for dataset, _ in folders)
    scores = {dataset: [folders[dataset, value] for value in values] for dataset in datasets}
    return FilterInputs(
        value=str(product.value),
        values=values,
        own=values.index(str(product.value)) if product.made_from["by_own_reward"] else None,
        normalisation=product.made_from["consistency"]["normalisation"],
        scope=product.made_from["consistency"]["scope"],
        min_norm=rule_of(product).min_norm,
        pairs=pairs,
        scores=scores,
        blocks=[
            block
            for dataset, folder in pairs.items()
            for block in training_blocks(dataset, folder, scores[dataset])
        ],
    )


def _size(inputs: FilterInputs) -> int:
    """Bytes of the files of pairs."""
    return sum(block.pairs.stat().st_size for block in inputs.blocks if block.pairs)


def _make_group(
    workspace: Workspace, products: Sequence[Product], pairs: ValuePairs, run: Run
) -> None:
    """Make products of the same measured pairs, which so have some files in common."""
    columns = pairs.measured.columns
    most, least = (extremes(pairs, keys) for keys in (-columns.cosines, columns.cosines))
    first: Path | None = None
    for product in products:
        with workspace.publishing(product) as draft:
            rule, copied = rule_of(product), _copied(workspace, product)
            size = copied.counts.kept if copied else None
            kept = keep(rule, columns, len(pairs.inputs.values), size)
            counts = count_pairs(pairs.measured, kept, rule, len(pairs.inputs.values))
            _refuse_nothing(product, counts)
            files = _write_kept(draft, pairs, kept, run)
            heldout = _write_common(pairs, draft.output, first)
            report = _report(product, pairs, counts, heldout, files, copied)
            _plot_histogram(draft.output, pairs, kept, rule.threshold)
            write_page(draft.output / PAGE, report, most, least)
            report.write(draft.output)
        first = first or workspace.folder(product)
        log.info(
            "%s: keeps %d of %d pairs; dropped: %s; its page: %s",
            product.name, counts.kept, counts.pairs, _listed(counts.dropped),
            workspace.folder(product) / PAGE,
        )  # fmt: skip


def _copied(workspace: Workspace, product: Product) -> FilterReport | None:
    """Report of the set whose size the rule `as_many_as` copies."""
    if rule_of(product).kind != "as_many_as":
        return None
    (copied,) = product.inputs_of("filter")
    return FilterReport.read(workspace.need(copied))


def _write_kept(
    draft: Draft, pairs: ValuePairs, kept: NDArray[np.bool_], run: Run
) -> list[PairsFile]:
    """Write the pairs that the mask [P] keeps."""
    parts = parts_of(pairs, kept, draft.output)
    files = [PairsFile(each.file.name, int(each.part.kept.sum())) for each in parts]
    with progress(f"{draft.product.name}: writing", int(kept.sum()), "pairs") as advance:
        for each, _ in zip(files, run(write_part, parts, draft.workers_lock), strict=True):
            advance(each.rows)
    return files


def _write_common(pairs: ValuePairs, output: Path, first: Path | None) -> HeldOut:
    """Write what does not depend on the rule, or copy it from the group's first product.

    Returns the counts of the held-out pairs.
    """
    if first is not None:
        for name in (HELD_OUT, GAPS, CORRELATION):
            shutil.copyfile(first / name, output / name)
        return FilterReport.read(first).heldout
    values, measured = pairs.inputs.values, pairs.measured
    plot_gaps(output / GAPS, measured.sample, values)
    plot_correlation(output / CORRELATION, measured.gaps.correlation(), values)
    return write_all_heldout(pairs, output / HELD_OUT)


def _report(
    product: Product,
    pairs: ValuePairs,
    counts: PairCounts,
    heldout: HeldOut,
    files: list[PairsFile],
    copied: FilterReport | None,
) -> FilterReport:
    inputs, measured, rule = pairs.inputs, pairs.measured, rule_of(product)
    values = inputs.values
    return FilterReport(
        method=str(product.method),
        rule=rule,
        size_of=copied.method if copied else None,
        value=inputs.value,
        values=values,
        datasets=list(inputs.pairs),
        normalisation=inputs.normalisation,
        scope=inputs.scope,
        counts=counts,
        heldout=heldout,
        scale={
            dataset: dict(zip(values, scale.s.tolist(), strict=True))
            for dataset, scale in pairs.scale.items()
        },
        equal_pairs={
            dataset: {
                value: ScoresManifest.read(folder).equal_pairs
                for value, folder in zip(values, inputs.scores[dataset], strict=True)
            }
            for dataset in inputs.pairs
        },
        correlation=measured.gaps.correlation(),
        conflicts=conflict_matrix(counts.sign_patterns).tolist(),
        comparison=compare(measured.columns, rule, len(values), copied.rule if copied else None),
        files=files,
    )


def _plot_histogram(
    output: Path, pairs: ValuePairs, kept: NDArray[np.bool_], threshold: float | None
) -> None:
    usable, cosines = pairs.measured.columns.usable, pairs.measured.columns.cosines
    values = len(pairs.inputs.values)
    plot_consistency(output / HISTOGRAM, cosines[usable], kept[usable], threshold, values)


FIX = {
    HELD_OUT_ELSEWHERE: "give its datasets the same `heldout`, or the same `heldout_share`",
    COMPARED_BEFORE: "name other datasets",
    NO_REWARD: "see the column `failure` of its scores",
    OWN_TIE: "its reward cannot tell the answers apart; take another one",
    ZERO_GAP: "its rewards cannot tell the answers apart; take other rewards",
    SHORT: "lower consistency.min_norm",
    BY_RULE: "lower consistency.threshold, take the rule `ratio`, or drop the method",
}
"""What to change, by the reason that drops most pairs."""


def _refuse_nothing(product: Product, counts: PairCounts) -> None:
    if counts.kept:
        return
    reason = max(counts.dropped, key=lambda name: counts.dropped[name])
    raise UserError(
        f"{product.name}: the method {product.method} keeps none of {counts.pairs} pairs for "
        f"the value {product.value} (dropped: {_listed(counts.dropped)}); {FIX[reason]}"
    )


def _listed(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none"
