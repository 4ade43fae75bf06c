"""Writing the parquet files of a filtered set, from blocks of pairs and masks over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.consistency.blocks import Block, Ids, ids_as_numbers, read_ids, read_rewards
from vcsoup_dist.consistency.gaps import consistency, norm
from vcsoup_dist.consistency.measured_pairs import GapSettings, gaps_of
from vcsoup_dist.files import replacing
from vcsoup_dist.records.filtered_pairs import PREFERENCES, filtered_schema
from vcsoup_dist.records.messages import MESSAGES

Mask = NDArray[np.bool_]

ROWS = 8192  # of texts in memory at a time, and at least so many in a row group
SORTED_BYTES = 1 << 28  # of held-out pairs in memory at a time, or so


@dataclass(frozen=True)
class Part:
    """Pairs of a block to write."""

    block: Block
    settings: GapSettings
    kept: Mask
    """[P]."""
    values: tuple[str, ...]
    """[N]."""


@dataclass(frozen=True)
class HeldOutPart:
    """Held-out pairs of a block to write."""

    block: Block
    kept: Mask
    """[P]."""
    swapped: Mask
    """[P]."""


@dataclass(frozen=True)
class PartFile:
    """A part and the file to write it to."""

    part: Part
    file: Path


def write_part(task: PartFile) -> None:
    """Write a part's pairs in their order, aside at first; a file that is there is complete."""
    if task.file.exists():
        return
    schema = filtered_schema(task.part.values)
    with replacing(task.file) as aside, pq.ParquetWriter(aside, schema) as writer:
        for table in _joined(filtered_tables(task.part), lambda table: table.num_rows, ROWS):
            writer.write_table(table)


def write_heldout(path: Path, parts: Sequence[HeldOutPart]) -> None:
    """Write the pairs of all parts in the order of their ids, which mixes their datasets.

    Runs of pairs are sorted into a scratch file next to it, then merged in ranges of ids: a range
    is one slice of every run, so that all is read just once more.
    """
    aside = path.with_name(f".{path.name}.runs")
    runs: list[Ids] = []
    size = 0
    with pa.ipc.new_file(aside, PREFERENCES) as spill:
        for run in _sorted_runs(parts):
            size += run.nbytes
            for batch in run.to_batches():
                spill.write_batch(batch)
                runs.append(ids_as_numbers(batch["id"]))
    count = size // SORTED_BYTES + 1
    ordered = np.sort(np.concatenate([np.zeros(0, np.uint64), *runs]))
    edges = ordered[len(ordered) * np.arange(1, count) // count]
    cuts = [[0, *np.searchsorted(run, edges).tolist(), len(run)] for run in runs]
    with pa.memory_map(str(aside)) as mapped, pq.ParquetWriter(path, PREFERENCES) as writer:
        file = pa.ipc.open_file(mapped)
        for place in range(count):
            slices = [
                file.get_batch(i).slice(cut[place], cut[place + 1] - cut[place])
                for i, cut in enumerate(cuts)
            ]
            merged = pa.Table.from_batches(slices, PREFERENCES).sort_by("id")
            writer.write_table(merged, row_group_size=ROWS)
    aside.unlink()


def _sorted_runs(parts: Sequence[HeldOutPart]) -> Iterator[pa.Table]:
    """The pairs of all parts, as many in the order of their ids as fit in memory."""
    tables = (
        table
        for part in parts
        for _, table in _preferences(part.block, part.kept, part.swapped, None)
    )
    for table in _joined(tables, lambda table: table.nbytes, SORTED_BYTES):
        yield table.sort_by("id")


def _joined(
    tables: Iterable[pa.Table], size: Callable[[pa.Table], int], least: int
) -> Iterator[pa.Table]:
    """The tables' rows in larger tables, each of at least that size but the last."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(size, held)) >= least:
            yield pa.concat_tables(held)
            held.clear()
    if held:
        yield pa.concat_tables(held)


def read_row(part: Part, row: int) -> dict[str, Any]:
    """One pair of a part's block, as a row of `filtered_schema`."""
    kept = np.zeros(part.block.rows, dtype=bool)
    kept[row] = True
    (table,) = filtered_tables(Part(part.block, part.settings, kept, part.values))
    (found,) = table.to_pylist()
    assert isinstance(found, dict)
    return found


def filtered_tables(part: Part) -> Iterator[pa.Table]:
    """The pairs of a part in their order, some at a time; nothing is read where there are none."""
    if not part.kept.any():
        return
    ids = read_ids(part.block)
    chosen, rejected = read_rewards(part.block)
    gaps, swapped = gaps_of(chosen, rejected, part.settings)
    schema = filtered_schema(part.values)
    for here, texts in _preferences(part.block, part.kept, swapped, ids):
        g = gaps[here][part.kept[here]]
        yield pa.Table.from_arrays([*texts.columns, consistency(g), norm(g), *g.T], schema=schema)


def _preferences(
    block: Block, kept: Mask, swapped: Mask, ids: Ids | None
) -> Iterator[tuple[slice, pa.Table]]:
    """The kept pairs as `PREFERENCES`, some at a time, and where in the block they are.

    ids [P]: those that the block's rewards are of, to be compared.
    """
    assert block.pairs is not None
    columns = ["id", "prompt", "chosen", "rejected"]
    first = 0
    opened = pq.ParquetFile(block.pairs)
    for batch in opened.iter_batches(ROWS, columns=columns, use_threads=False):
        here = slice(first, first + batch.num_rows)
        first = here.stop
        if ids is not None:
            assert np.array_equal(ids_as_numbers(batch["id"]), ids[here]), block.pairs
        mask = kept[here]
        if mask.any():
            yield here, _table(block, batch.filter(pa.array(mask)), swapped[here][mask])
    assert first == block.rows


def _table(block: Block, texts: pa.RecordBatch, swapped: Mask) -> pa.Table:
    chosen, rejected = texts["chosen"], texts["rejected"]
    if swapped.any():
        mask = pa.array(swapped)
        chosen, rejected = (
            pc.if_else(mask, rejected, chosen),
            pc.if_else(mask, chosen, rejected),
        )
    return pa.Table.from_arrays(
        [
            texts["id"],
            texts["prompt"].cast(MESSAGES),
            _answers(chosen),
            _answers(rejected),
            pa.repeat(pa.scalar(block.dataset, pa.string()), len(swapped)),
            pa.array(swapped),
        ],
        schema=PREFERENCES,
    )


def _answers(texts: pa.Array) -> pa.Array:
    """Each text as a dialogue of one message, the assistant's."""
    roles = pa.repeat(pa.scalar("assistant", pa.string()), len(texts))
    messages = pa.StructArray.from_arrays([roles, texts], fields=list(MESSAGES.value_type))
    offsets = pa.array(np.arange(len(texts) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, messages, type=MESSAGES)
