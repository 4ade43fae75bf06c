"""A value's pairs as every rule sees them: measured, with their scales, and how to write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.blocks import (
    Block,
    heldout_block,
    read_comparisons,
    training_blocks,
)
from vcsoup_dist.consistency.filtered_files import (
    HeldOutPart,
    Part,
    PartFile,
    read_row,
    write_heldout,
)
from vcsoup_dist.consistency.measured_pairs import GapSettings, MeasuredPairs, measure_pairs
from vcsoup_dist.consistency.plots import POINTS
from vcsoup_dist.consistency.rules import lowest
from vcsoup_dist.consistency.scales import Normalisation, Scale, check_scale, reward_scale
from vcsoup_dist.launch.task_map import Run, run_here
from vcsoup_dist.progress import progress
from vcsoup_dist.records.filter_report import HeldOut
from vcsoup_dist.records.filtered_pairs import part_name
from vcsoup_dist.records.scores import ScoresManifest

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

EXTREMES = 5  # pairs shown in full at either end


@dataclass(frozen=True)
class FilterInputs:
    """A value's pairs, and how to measure them."""

    value: str
    values: list[str]
    own: int | None
    """Index of the value where it borrows its pairs."""
    normalisation: Normalisation
    scope: Literal["dataset", "all"]
    """What a scale is measured over."""
    min_norm: float
    pairs: dict[str, Path]
    """Dataset of the value -> its pairs."""
    scores: dict[str, list[Path]]
    """Dataset, also others where the scale is over all -> its rewards by value [N]."""
    blocks: list[Block]
    """All training pairs of the value."""

    def heldout_blocks(self) -> list[Block]:
        """All held-out pairs, a block for each dataset, with the value's own reward if borrowed."""
        return [
            heldout_block(
                dataset, folder, () if self.own is None else [self.scores[dataset][self.own]]
            )
            for dataset, folder in self.pairs.items()
        ]


@dataclass(frozen=True)
class ValuePairs:
    """A value's training pairs, measured."""

    inputs: FilterInputs
    scale: dict[str, Scale]
    """By dataset."""
    measured: MeasuredPairs

    def part(self, block: Block, kept: Mask) -> Part:
        """Of a block's pairs those that the mask [P] has."""
        settings = _gap_settings(self.inputs, self.scale, block)
        return Part(block, settings, kept, tuple(self.inputs.values))


def measure_value(
    inputs: FilterInputs, run: Run, known: dict[tuple[str, ...], Scale]
) -> ValuePairs:
    """Measure a value's training pairs; `known` scales, by the datasets they are of, are added to.

    Raises UserError where a reward has no spread.
    """
    scale = _scales(inputs, run, known)
    settings = [_gap_settings(inputs, scale, block) for block in inputs.blocks]
    total = sum(block.rows for block in inputs.blocks)
    held_out = _held_out_prompts(inputs)
    with progress(f"filter: gaps of {inputs.value}", total, "pairs") as advance:
        measured = measure_pairs(inputs.blocks, settings, run, advance, POINTS, held_out)
    return ValuePairs(inputs, scale, measured)


def _gap_settings(inputs: FilterInputs, scale: dict[str, Scale], block: Block) -> GapSettings:
    return GapSettings(scale[block.dataset], inputs.own, inputs.min_norm)


def _held_out_prompts(inputs: FilterInputs) -> NDArray[np.uint64]:
    """The prompts that any of the value's datasets holds out, sorted.

    Each dataset has its own split, so that one may train on what another holds out.
    """
    prompts = [read_comparisons(block)[1] for block in inputs.heldout_blocks()]
    return np.unique(np.concatenate(prompts))


def _scales(
    inputs: FilterInputs, run: Run, known: dict[tuple[str, ...], Scale]
) -> dict[str, Scale]:
    """Scale of each dataset, taken from `known` or measured and added there."""
    each_alone = inputs.scope == "dataset"
    found: dict[str, Scale] = {}
    for datasets in [(each,) for each in inputs.scores] if each_alone else [tuple(inputs.scores)]:
        if datasets not in known:
            known[datasets] = _measure_scale(inputs, datasets, run)
        where = f"the pairs of `{datasets[0]}`" if each_alone else "all datasets"
        check_scale(known[datasets], inputs.values, inputs.normalisation, where)
        found |= dict.fromkeys(datasets, known[datasets])
    return found


def _measure_scale(inputs: FilterInputs, datasets: Sequence[str], run: Run) -> Scale:
    scores = [inputs.scores[dataset] for dataset in datasets]
    blocks = [
        block
        for dataset, folders in zip(datasets, scores, strict=True)
        for block in training_blocks(dataset, None, folders)
    ]
    # The share of each reward's size [N] that is rounding.
    rounding = [
        max(ScoresManifest.read(folder).rounding for folder in of_value)
        for of_value in zip(*scores, strict=True)
    ]
    total = sum(block.rows for block in blocks)
    with progress(f"filter: scales of {', '.join(datasets)}", total, "pairs") as advance:
        return reward_scale(blocks, inputs.normalisation, run, advance, rounding)


def parts_of(pairs: ValuePairs, kept: Mask, output: Path) -> list[PartFile]:
    """What is kept of each block that something is kept of, and its file."""
    parts: list[PartFile] = []
    first = 0
    for block in pairs.inputs.blocks:
        own = kept[first : first + block.rows]
        first += block.rows
        if own.any():
            parts.append(PartFile(pairs.part(block, own), output / part_name(len(parts))))
    return parts


def write_all_heldout(pairs: ValuePairs, path: Path) -> HeldOut:
    """Write the held-out pairs, which no rule filters; returns their counts.

    A value's own pairs are taken as they are, borrowed ones as its own reward orders them.
    """
    own, blocks = pairs.inputs.own, pairs.inputs.heldout_blocks()
    total = sum(block.rows for block in blocks)
    usable, swapped = np.ones(total, bool), np.zeros(total, bool)
    if own is not None:
        settings = [GapSettings(pairs.scale[block.dataset].of(own), 0, 0.0) for block in blocks]
        measured = measure_pairs(blocks, settings, run_here, lambda pairs: None)
        usable, swapped = measured.columns.usable, measured.swapped
    ends = np.cumsum([block.rows for block in blocks])[:-1]
    masks = zip(blocks, np.split(usable, ends), np.split(swapped, ends), strict=True)
    write_heldout(path, [HeldOutPart(*each) for each in masks])
    return HeldOut(total, int(usable.sum()))


def extremes(pairs: ValuePairs, keys: Array) -> list[dict[str, Any]]:
    """The eligible pairs with the lowest keys [P], as rows of a filtered file, lowest first."""
    columns, blocks = pairs.measured.columns, pairs.inputs.blocks
    found = np.flatnonzero(lowest(keys, columns.ids, columns.eligible, EXTREMES))
    found = found[np.lexsort((columns.ids[found], keys[found]))]
    ends = np.cumsum([block.rows for block in blocks])
    rows = []
    for i in found.tolist():
        number = int(np.searchsorted(ends, i, side="right"))
        block = blocks[number]
        nothing = np.zeros(block.rows, dtype=bool)
        rows.append(read_row(pairs.part(block, nothing), i - int(ends[number]) + block.rows))
    return rows
