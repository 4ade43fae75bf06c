"""Which pairs of a dataset reference log-probs are computed for: those that policies read.

A policy reads the kept pairs of its pair sets, and the first held-out ones. Pairs that have
log-probs already are not computed again, so a method that comes later adds those of its own alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.errors import UserError
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.filtered_pairs import HELD_OUT
from vcsoup_dist.records.pairs_read import PairsRead
from vcsoup_dist.records.reference import (
    PartDraft,
    Reference,
    Rows,
    begin_part,
    begun_rows,
    part_folders,
    part_name,
)
from vcsoup_dist.records.tokens import FIX, TokenFile
from vcsoup_dist.training.reweighting import rows_of_union

Mask = NDArray[np.bool_]


def rows_read(tokens: TokenFile, dataset: str, folder: Path, read: PairsRead) -> Mask:
    """[rows] which pairs of a dataset a policy reads of the filtered set or union in `folder`.

    Among them are pairs that cannot be used. UserError where the token file lacks a pair.
    """
    mask = np.zeros(tokens.rows, bool)
    if read.reweighting is not None:
        mask[rows_of_union(tokens, dataset, folder, read.reweighting, read.heldout)] = True
        return mask
    known = tokens.table(["id"])["id"]
    kept = [(folder / each.file, None) for each in FilterReport.read(folder).files]
    for file, limit in [*kept, (folder / HELD_OUT, read.heldout)]:
        table = pq.read_table(file, columns=["id", "dataset"]).slice(0, limit)
        wanted = table["id"].filter(pc.equal(table["dataset"], dataset))
        rows = pc.index_in(wanted, value_set=known)
        if rows.null_count:
            first = wanted.filter(pc.is_null(rows))[0]
            raise UserError(f"pair {first} of {file} has no tokens; {FIX}")
        mask[rows.to_numpy()] = True
    return mask


def parts_to_compute(
    output: Path, made: Path | None, tokens: TokenFile, needed: Rows
) -> list[Path]:
    """Folders in a draft's `output` of the parts to compute, so that the product has `needed`.

    made: the product that is extended. A part that a killed run began stays as it is, since the
    pairs that are computed together decide the last bits; but where some of its pairs are needed
    no more, it goes.
    """
    there = Reference(made, tokens).rows() if made else np.zeros(0, np.int64)
    missing = np.setdiff1d(needed, there)
    number = len(part_folders(made)) if made else 0
    parts = []
    for folder in part_folders(output):
        rows = begun_rows(folder, tokens)
        if rows is None or folder.name != part_name(number) or not np.isin(rows, missing).all():
            shutil.rmtree(folder)
            continue
        missing = np.setdiff1d(missing, rows)
        number += 1
        if PartDraft(folder).pairs < len(rows):
            parts.append(folder)
    if len(missing):
        parts.append(output / part_name(number))
        begin_part(parts[-1], tokens, missing)
    return parts
