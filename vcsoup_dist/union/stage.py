"""Entry of stage `union`: the pairs of all datasets with what every value says of them.

The first pass finds which pairs are in the union and how far each reward varies over them; the
second writes the rows. In memory are the pairs' ids and signs, and the rewards of one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.consistency.blocks import (
    Block,
    checked_ids,
    heldout_block,
    read_comparisons,
    read_rewards,
    training_blocks,
)
from vcsoup_dist.consistency.gaps import gap_vectors
from vcsoup_dist.errors import UserError
from vcsoup_dist.moments import Moments, moments
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.union import HELD_OUT, TRAIN, Temperature, UnionManifest, union_schema
from vcsoup_dist.union.preferences import human_preferences
from vcsoup_dist.union.temperatures import fit_temperature, shared_temperature
from vcsoup_dist.workspace import Product, Workspace

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """P pairs of all datasets, training or held out, in blocks."""

    blocks: list[Block]
    signs: NDArray[np.int8]
    """[P, N] what people say, as `human_preferences`."""
    compared: Mask
    """[P, N]."""
    elsewhere: Mask
    """[P] whether another dataset holds the prompt out."""
    first: Mask
    """[P] whether no pair before has the same two answers."""

    @property
    def once(self) -> Mask:
        """[P] which are in the union, as far as they have rewards."""
        return self.first & ~self.elsewhere


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make `union`. UserError where no pair has all rewards, or a reward is constant."""
    (product,) = products
    values = list(recipe.values)
    pairs = {str(each.dataset): workspace.need(each) for each in product.inputs_of("read")}
    folders = {
        (each.dataset, each.value): workspace.need(each) for each in product.inputs_of("score")
    }
    scores = {dataset: [folders[dataset, value] for value in values] for dataset in pairs}
    heldout_blocks = [heldout_block(each, pairs[each], scores[each]) for each in pairs]
    nothing = np.zeros(0, np.uint64)
    heldout = _compared(heldout_blocks, values, nothing)
    train = _compared(
        [block for each in pairs for block in training_blocks(each, pairs[each], scores[each])],
        values,
        np.unique(np.concatenate([read_comparisons(block)[1] for block in heldout_blocks])),
    )
    spread = _moments_of_union(train)
    mean, std = (dict(zip(values, each.tolist(), strict=True)) for each in _checked(spread, values))
    with workspace.publishing(product) as draft:
        rows = _write(train, draft.output / TRAIN, values, spread)
        temperatures = _temperatures(values, heldout_blocks, std)
        manifest = UnionManifest(
            values=values,
            pairs=int(spread.count[0]) // 2,
            rows=rows,
            heldout=_write(heldout, draft.output / HELD_OUT, values, spread),
            without_reward=sum(block.rows for block in train.blocks) - rows,
            held_out_elsewhere=int(train.elsewhere.sum()),
            mean=mean,
            std=std,
            usable=_usable(recipe, draft.output / TRAIN),
            temperatures=temperatures,
        )
        manifest.write(draft.output)
    log.info(
        "union: %d pairs of %s, each two answers once; left out: %d without a reward, %d whose "
        "prompt another dataset holds out; temperatures: %s",
        manifest.pairs, ", ".join(pairs), manifest.without_reward, manifest.held_out_elsewhere,
        ", ".join(f"{value} {_shown(each)}" for value, each in temperatures.items()),
    )  # fmt: skip


def _compared(blocks: list[Block], values: list[str], held_out: NDArray[np.uint64]) -> Pairs:
    """held_out: the prompts, sorted, that no training pair may have."""
    ids = np.concatenate([checked_ids(block) for block in blocks])
    comparisons = [read_comparisons(block) for block in blocks]
    answers, prompts = (np.concatenate(each) for each in zip(*comparisons, strict=True))
    index = {value: j for j, value in enumerate(values)}
    own = np.repeat([index[block.dataset] for block in blocks], [block.rows for block in blocks])
    signs, compared, first = human_preferences(ids, answers, own, len(values))
    return Pairs(blocks, signs, compared, np.isin(prompts, held_out), first)


def _moments_of_union(pairs: Pairs) -> Moments:
    """Of the N rewards of the pairs of the union, chosen and rejected pooled."""
    total = moments(np.zeros((0, pairs.signs.shape[1])))
    begin = 0
    for block in pairs.blocks:
        chosen, rejected = read_rewards(block)
        whole = pairs.once[begin : begin + block.rows] & ~np.isnan(chosen - rejected).any(axis=1)
        begin += block.rows
        total = total.merged(moments(np.concatenate([chosen[whole], rejected[whole]])))
    return total


def _checked(spread: Moments, values: Sequence[str]) -> tuple[Array, Array]:
    """Mean and deviation [N]. UserError where there are none, or a reward does not vary."""
    if not spread.count[0]:
        raise UserError("union: no pair has the rewards of all values; see the column `failure`")
    std = spread.std()
    for value, deviation in zip(values, std.tolist(), strict=True):
        if not deviation > 0:
            raise UserError(f"union: the reward of `{value}` is the same for all answers")
    return spread.mean, std


def _write(pairs: Pairs, path: Path, values: Sequence[str], spread: Moments) -> int:
    """Write the pairs that have all rewards, a row group per block; returns how many."""
    schema = union_schema(values)
    std, written, begin = spread.std(), 0, 0
    rows: dict[str, int] = {}
    with pq.ParquetWriter(path, schema) as writer:
        for block in pairs.blocks:
            chosen, rejected = read_rewards(block)
            inside = slice(begin, begin + block.rows)
            begin = inside.stop
            gaps = gap_vectors(chosen, rejected, std, std)
            prefers = np.where(pairs.compared[inside], pairs.signs[inside], np.sign(gaps))
            first = rows.get(block.dataset, 0)
            rows[block.dataset] = first + block.rows
            columns = [
                pq.read_table(block.scores[0], columns=["id"])["id"].combine_chunks(),
                pa.array([block.dataset] * block.rows, pa.string()),
                pa.array(np.arange(first, first + block.rows), pa.uint32()),
                pa.array(pairs.once[inside]),
                *(pa.array(each, pa.int8()) for each in np.nan_to_num(prefers).T.astype(np.int8)),
            ]
            for j in range(len(values)):
                columns += [pa.array(side[:, j]) for side in (chosen, rejected)]
            whole = ~np.isnan(gaps).any(axis=1)
            table = pa.Table.from_arrays(columns, schema=schema).filter(pa.array(whole))
            writer.write_table(table)
            written += table.num_rows
    return written


def _temperatures(
    values: Sequence[str], heldout: Sequence[Block], std: dict[str, float]
) -> dict[str, Temperature]:
    """Of every value; those with pairs of their own first."""
    fitted = {}
    for block in heldout:
        chosen, rejected = read_rewards(block)
        j = values.index(block.dataset)
        gaps = (chosen - rejected)[:, j]
        fitted[block.dataset] = fit_temperature(gaps[~np.isnan(gaps)])
    return {
        value: fitted[value] if value in fitted else shared_temperature(fitted, std, value)
        for value in values
    }


def _usable(recipe: Recipe, path: Path) -> dict[str, int]:
    """Trained value -> pairs that its policy would have before any filter."""
    found = {}
    for value in recipe.trained_values():
        datasets = recipe.datasets_of(value)
        table = pq.read_table(path, columns=["dataset", "once", f"prefers_{value}"])
        mine = np.isin(table["dataset"].to_numpy(), datasets)
        if datasets != [value]:  # labelled by its own reward, each pair of answers once
            mine &= table["once"].to_numpy() & (table[f"prefers_{value}"].to_numpy() != 0)
        found[value] = int(mine.sum())
    return found


def _shown(temperature: Temperature) -> str:
    if temperature.a is None:
        return "none (its reward is no better than chance)"
    return f"{temperature.a:.3g}" + (" (the largest allowed)" if temperature.capped else "")
