"""Datasets in files and on the hub -> rows -> pairs, streaming."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.canonical import Comparison, canonical
from vcsoup_dist.preferences.first_rows import watched
from vcsoup_dist.preferences.formats import check_preferred_by, detect_format, to_pair
from vcsoup_dist.preferences.neighbours import pair_neighbours
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Pair, Row
from vcsoup_dist.preferences.rated import Rated, from_helpsteer
from vcsoup_dist.preferences.row_files import CUT, ROWS_PER_BATCH, read_file

Rows = Iterable[tuple[int, Row | BadRow]]
Read = Pair | BadRow | LeftOut | None
"""What becomes of a row; None where it is one half of a pair that another row stands for."""


def read_pairs(
    source: Located,
    *,
    format: str = "auto",
    preferred_by: str | None = None,
    subset: str | None = None,
    split: str = "train",
    columns: Sequence[str] = (),
    tally: Counter[str] | None = None,
) -> Iterator[tuple[int, Read]]:
    """(row number from 1, what becomes of it) for every row of a dataset.

    `source` is a file of a kind that `row_files` knows, or a folder or hub id that `datasets` can
    load. `tally` gets the number of `returned_prompts`, see `neighbours`. Raises UserError where
    the dataset cannot be read at all, or does not have what `preferred_by` or `columns` name, or
    the columns of any format.
    """
    found = _read(
        source, format, preferred_by, subset, split, columns, Counter() if tally is None else tally
    )
    return watched(source.source, found, columns)


def _read(
    source: Located,
    format: str,
    preferred_by: str | None,
    subset: str | None,
    split: str,
    columns: Sequence[str],
    tally: Counter[str],
) -> Iterator[tuple[int, Read]]:
    path = Path(source.source)
    rows = iter(read_file(path) if path.is_file() else _hub(source, subset, split))
    for number, row in rows:
        try:
            known = _settle(source, row, format, preferred_by)
        except BadRow as bad:
            yield number, _shown(bad, row)
        except LeftOut as left_out:
            yield number, left_out
        else:
            rows = chain([(number, row)], rows)
            break
    else:
        return
    if known == "helpsteer":
        assert preferred_by is not None
        yield from _paired(rows, preferred_by, columns, tally)
        return
    for number, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            yield number, to_pair(row, known, columns, preferred_by)
        except BadRow as bad:
            yield number, _shown(bad, row)
        except LeftOut as left_out:
            yield number, left_out


def _settle(source: Located, row: Row | BadRow, format: str, preferred_by: str | None) -> str:
    """The dataset's format, once a row is readable; raises UserError, BadRow or LeftOut."""
    if isinstance(row, BadRow):
        raise row
    known = detect_format(row) if format == "auto" else format
    try:
        check_preferred_by(row, known, preferred_by)
    except UserError as error:
        raise UserError(f"{source.source}: {error}") from error
    return known


def _paired(
    rows: Rows, preferred_by: str, columns: Sequence[str], tally: Counter[str]
) -> Iterator[tuple[int, Read]]:
    for number, found in pair_neighbours(_rated(rows), preferred_by, columns, tally):
        try:
            yield number, canonical(found, columns) if isinstance(found, Comparison) else found
        except BadRow as bad:
            yield number, _shown(bad, found)
        except LeftOut as left_out:
            yield number, left_out


def _rated(rows: Rows) -> Iterator[tuple[int, Rated | BadRow]]:
    for number, row in rows:
        try:
            yield number, row if isinstance(row, BadRow) else from_helpsteer(row)
        except BadRow as bad:
            yield number, _shown(bad, row)


def _shown(bad: BadRow, row: Any) -> BadRow:
    """A bad row with as much of its text as its reader needs."""
    text = bad.text or (str(row) if not isinstance(row, BadRow) else "")
    bad.text = text.encode(errors="replace").decode()[:CUT]
    return bad.with_traceback(None)  # which would keep the row


def _hub(source: Located, subset: str | None, split: str) -> Iterator[tuple[int, Row]]:
    import datasets

    name, revision = source.source, source.revision
    where: dict[str, str] = {}
    try:
        if subset is not None:
            known = datasets.get_dataset_config_names(name, revision=revision)
            where = {"name": subset} if subset in known else {"data_dir": subset}
        rows = datasets.load_dataset(name, split=split, revision=revision, **where)
    except Exception as error:  # datasets, the hub and httpx each raise their own kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        what = f"{name} (subset {subset}, split {split})"
        raise UserError(f"{what}: cannot load it: {reason}") from error
    number = 0
    for batch in rows.iter(ROWS_PER_BATCH):
        for cells in zip(*batch.values(), strict=True):
            number += 1
            yield number, dict(zip(batch, cells, strict=True))
