"""What is known of a value's pairs before a method chooses among them, and how to get at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.consistency.blocks import (
    Block,
    heldout_block,
    read_comparisons,
    training_blocks,
)
from vcsoup_dist.consistency.candidates import Candidates, Measure, gather
from vcsoup_dist.consistency.filtered_files import (
    Part,
    PartFile,
    part_name,
    read_row,
    write_heldout,
)
from vcsoup_dist.consistency.filtering import account, choose
from vcsoup_dist.consistency.plots import POINTS
from vcsoup_dist.consistency.policies import lowest
from vcsoup_dist.consistency.scales import Scale, check_scale, reward_scale
from vcsoup_dist.consistency.shard_map import Run, run_here
from vcsoup_dist.progress import progress
from vcsoup_dist.recipe import Consistency
from vcsoup_dist.scoring.pair_files import read_manifest

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

EXTREMES = 5  # pairs shown in full at either end


@dataclass(frozen=True)
class Inputs:
    """A value's pairs, and what they are judged by."""

    value: str
    values: list[str]
    settings: Consistency
    own: int | None
    """Index of the value where it borrows its pairs."""
    pairs: dict[str, Path]
    """Dataset of the value -> its pairs."""
    scores: dict[str, list[Path]]
    """Dataset, also others where the scale is over all -> its rewards by value [N]."""
    blocks: list[Block]
    """All training pairs of the value."""


@dataclass(frozen=True)
class Judgement:
    """What is known of a value's training pairs."""

    inputs: Inputs
    scale: dict[str, Scale]
    candidates: Candidates

    def part(self, block: Block, kept: Mask) -> Part:
        """Of a block's pairs those that the mask [P] has."""
        measure = _measure(self.inputs, self.scale, block)
        return Part(block, measure, kept, tuple(self.inputs.values))


def judge_pairs(inputs: Inputs, run: Run, scales: dict[tuple[str, ...], Scale]) -> Judgement:
    """Judge a value's training pairs; `scales`, known by the datasets they are of, grows."""
    scale = _scales(inputs, run, scales)
    measures = [_measure(inputs, scale, block) for block in inputs.blocks]
    total = sum(block.rows for block in inputs.blocks)
    held_out = _held_out_prompts(inputs)
    with progress(f"filter: gaps of {inputs.value}", total, "pairs") as advance:
        candidates = gather(inputs.blocks, measures, run, advance, POINTS, held_out)
    return Judgement(inputs, scale, candidates)


def _measure(inputs: Inputs, scale: dict[str, Scale], block: Block) -> Measure:
    return Measure(scale[block.dataset], inputs.own, inputs.settings.min_norm)


def _heldout_blocks(inputs: Inputs) -> list[Block]:
    return [
        heldout_block(dataset, folder, inputs.scores[dataset])
        for dataset, folder in inputs.pairs.items()
    ]


def _held_out_prompts(inputs: Inputs) -> NDArray[np.uint64]:
    """The prompts that any of the value's datasets holds out, sorted.

    Each dataset has its own split, so that one may train on what another holds out.
    """
    prompts = [read_comparisons(block)[1] for block in _heldout_blocks(inputs)]
    return np.unique(np.concatenate(prompts))


def _scales(inputs: Inputs, run: Run, scales: dict[tuple[str, ...], Scale]) -> dict[str, Scale]:
    """Scale of each dataset, taken from `scales` or measured and added there."""
    settings = inputs.settings
    apart = settings.scope == "dataset"
    found: dict[str, Scale] = {}
    for datasets in [(each,) for each in inputs.scores] if apart else [tuple(inputs.scores)]:
        if datasets not in scales:
            blocks = [
                block
                for dataset in datasets
                for block in training_blocks(dataset, None, inputs.scores[dataset])
            ]
            total = sum(block.rows for block in blocks)
            with progress(f"filter: scales of {', '.join(datasets)}", total, "pairs") as advance:
                rounding = _rounding([inputs.scores[dataset] for dataset in datasets])
                scales[datasets] = reward_scale(
                    blocks, settings.normalisation, run, advance, rounding
                )
        where = f"the pairs of `{datasets[0]}`" if apart else "all datasets"
        check_scale(scales[datasets], inputs.values, settings.normalisation, where)
        found |= dict.fromkeys(datasets, scales[datasets])
    return found


def _rounding(scores: Sequence[Sequence[Path]]) -> list[float]:
    """[N] the share of each reward's size that tells nothing; scores: by dataset and value."""
    return [
        max(read_manifest(folder)["rounding"] for folder in of_value)
        for of_value in zip(*scores, strict=True)
    ]


def parts_of(judgement: Judgement, kept: Mask, output: Path) -> list[PartFile]:
    """What is kept of each block that something is kept of, and its file."""
    parts: list[PartFile] = []
    first = 0
    for block in judgement.inputs.blocks:
        own = kept[first : first + block.rows]
        first += block.rows
        if own.any():
            file = output / part_name(len(parts))
            parts.append(PartFile(judgement.part(block, own), file))
    return parts


def write_all_heldout(judgement: Judgement, path: Path) -> dict[str, Any]:
    """Write the held-out pairs, which no method filters; returns their counts."""
    inputs = judgement.inputs
    blocks = _heldout_blocks(inputs)
    measures = [_measure(inputs, judgement.scale, block) for block in blocks]
    candidates = gather(blocks, measures, run_here, lambda pairs: None)
    kept = choose("rewarded_soup", inputs.settings, candidates.columns, len(inputs.values))
    ends = np.cumsum([block.rows for block in blocks])
    masks = np.split(kept, ends[:-1])
    parts = [judgement.part(*each) for each in zip(blocks, masks, strict=True)]
    write_heldout(path, parts)
    return account(candidates, kept, "rewarded_soup", len(inputs.values))


def extremes(judgement: Judgement, keys: Array) -> list[dict[str, Any]]:
    """The eligible pairs with the lowest keys [P], as rows of a filtered file, lowest first."""
    columns, blocks = judgement.candidates.columns, judgement.inputs.blocks
    found = np.flatnonzero(lowest(keys, columns.ids, columns.eligible, EXTREMES))
    found = found[np.lexsort((columns.ids[found], keys[found]))]
    ends = np.cumsum([block.rows for block in blocks])
    rows = []
    for i in found.tolist():
        number = int(np.searchsorted(ends, i, side="right"))
        block = blocks[number]
        nothing = np.zeros(block.rows, dtype=bool)
        rows.append(read_row(judgement.part(block, nothing), i - int(ends[number]) + block.rows))
    return rows
