"""Which pairs of the token files a policy trains on, in its order: a small file that ranks map.

The launcher makes it, so that ranks hold nothing of the pairs that they do not train on just now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import replacing
from vcsoup_dist.records.tokens import FIX, TokenFile
from vcsoup_dist.training.job import Selection

ROW = np.dtype(
    [
        ("dataset", "<u2"),  # place among the token files
        ("row", "<u4"),  # in its token file
        ("swapped", "?"),  # whether its answers are chosen and rejected the other way round there
        ("weight", "<f8"),  # v, of its loss
        ("label", "<f8"),  # p and m of `objectives.LossTargets`
        ("margin", "<f8"),
    ]
)


def select_all(
    file: Path,
    tokens: Sequence[TokenFile],
    heldout_share: int | None = None,
    both_answers: bool = False,
) -> Selection:
    """All training pairs of token files; or of each the first `heldout_share` held-out pairs.

    `file` takes the rows. both_answers: each pair twice, once with its rejected answer in place of
    the chosen one, for an objective that reads that alone.
    """
    groups = []
    for dataset, each in enumerate(tokens):
        first, count = 0, each.manifest.train
        if heldout_share is not None:
            first, count = count, min(heldout_share, each.manifest.heldout)
        group = np.zeros(count, ROW)
        group["dataset"], group["row"] = dataset, np.arange(first, first + count)
        groups.append(group)
    rows = np.concatenate([np.zeros(0, ROW), *groups])
    rows["weight"] = rows["label"] = 1.0
    if both_answers:
        others = rows.copy()
        others["swapped"] = True
        rows = np.concatenate([rows, others])
    return write_usable(file, tokens, rows)


def select_filtered(
    file: Path,
    tokens: Mapping[str, TokenFile],
    filtered: Sequence[Path],
    limit: int | None = None,
    weighted: bool = False,
) -> Selection:
    """The pairs of files of `filtered/`, by dataset and id; of each file the first `limit`.

    file: takes the rows. tokens: by dataset. weighted: by consistency. UserError where the token
    files lack a pair, or the filtered ones their consistency.
    """
    names = pa.array(tokens)
    ids = [each.table(["id"])["id"] for each in tokens.values()]
    groups = []
    for each in filtered:
        columns = ["id", "dataset", "swapped", *(["consistency"] if weighted else [])]
        if weighted and "consistency" not in pq.read_schema(each).names:
            raise UserError("training.pair_weights: these pairs have no column `consistency`")
        table = pq.read_table(each, columns=columns).slice(0, limit)
        group = np.zeros(table.num_rows, ROW)
        datasets = pc.index_in(table["dataset"], value_set=names)
        if datasets.null_count:
            raise UserError(f"{each}: has pairs of other datasets than {', '.join(tokens)}")
        group["dataset"] = datasets.to_numpy()
        group["swapped"] = table["swapped"].to_numpy()
        # Weights are made of them once all pairs are known.
        group["weight"] = table["consistency"].to_numpy() if weighted else 1.0
        for dataset, known in enumerate(ids):
            own = group["dataset"] == dataset
            wanted = table["id"].filter(pa.array(own))
            rows = pc.index_in(wanted, value_set=known)
            if rows.null_count:
                first = wanted.filter(pc.is_null(rows))[0]
                raise UserError(f"pair {first} of {each} has no tokens; {FIX}")
            group["row"][own] = rows.to_numpy()
        groups.append(group)
    rows = np.concatenate([np.zeros(0, ROW), *groups])
    rows["label"] = 1.0
    return write_usable(file, list(tokens.values()), rows, by_consistency=weighted)


def write_usable(
    file: Path,
    tokens: Sequence[TokenFile],
    rows: NDArray[Any],
    *,
    by_consistency: bool = False,
    left_out: Mapping[str, int] | None = None,
    divisor: float = 1.0,
) -> Selection:
    """Write the usable ones of `rows` [P] of `ROW`.

    by_consistency: their weights are still cosines. left_out: pairs that are not among `rows`, by
    reason. divisor: w of their loss.
    """
    usable = np.ones(len(rows), bool)
    gone = Counter(left_out or {})
    refused: dict[int, str] = {}
    for dataset, each in enumerate(tokens):
        places = np.flatnonzero(rows["dataset"] == dataset)
        unusable = pc.is_valid(each.table(["unusable"])["unusable"]).to_numpy()
        bad = places[unusable[rows["row"][places]]]
        usable[bad] = False
        table = each.table(["id", "unusable", "reason"]).take(pa.array(rows["row"][bad]))
        gone.update(table["unusable"].to_pylist())
        why = table.filter(pc.is_valid(table["reason"]))
        if why.num_rows:
            place = int(bad[pc.is_valid(table["reason"]).to_numpy()][0])
            refused[place] = f"pair {why['id'][0]}: {why['reason'][0]}"
    kept = rows[usable]
    if by_consistency and len(kept):
        kept["weight"] = consistency_weights(kept["weight"])
    with replacing(file) as aside, open(aside, "wb") as new:
        np.save(new, kept)
    first = refused[min(refused)] if refused else None
    return Selection(str(file), len(kept), {k: n for k, n in gone.items() if n}, first, divisor)


def consistency_weights(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [P] (1 + c) / 2 of pairs of consistency c [P], scaled to a mean of 1.

    A pair whose gaps are all zero, which only a method without a filter keeps, counts as c = 0.
    """
    weights = (1 + np.nan_to_num(cosines)) / 2
    if not weights.sum() > 0:
        raise UserError("training.pair_weights: every pair has the consistency -1, a weight of 0")
    return np.asarray(weights / weights.mean())


def count_text(left_out: Mapping[str, int]) -> str:
    """As `3 too long, 1 without an answer`."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
