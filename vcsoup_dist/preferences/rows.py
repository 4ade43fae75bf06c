"""Datasets in files and on the hub -> rows -> pairs, streaming."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.canonical import Comparison, canonical
from vcsoup_dist.preferences.first_rows import watched
from vcsoup_dist.preferences.formats import check_preferred_by, detect_format, row_format, to_pair
from vcsoup_dist.preferences.grouped_ratings import pair_grouped
from vcsoup_dist.preferences.json_rows import CUT
from vcsoup_dist.preferences.other_columns import count_not_read
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Pair, Row
from vcsoup_dist.preferences.rated import Rated, from_helpsteer
from vcsoup_dist.preferences.row_sources import read_rows

Rows = Iterable[tuple[int, Row | BadRow]]
Read = Pair | BadRow | LeftOut | None
"""What becomes of a row; None where it is one half of a pair that another row stands for."""


@dataclass(frozen=True)
class Reading:
    """How the rows of a dataset are to be understood."""

    format: str
    preferred_by: str | None
    columns: Sequence[str]
    tally: Counter[str] = field(default_factory=Counter)


def read_pairs(
    source: Located,
    *,
    format: str = "auto",
    preferred_by: str | None = None,
    subset: str | None = None,
    split: str = "train",
    columns: Sequence[str] = (),
    tally: Counter[str] | None = None,
    sample: int | None = None,
) -> Iterator[tuple[int, Read]]:
    """(row number from 1, what becomes of it) for every row of a dataset.

    `source` is a file of a kind that `row_files` knows, or a folder or hub id that `datasets` can
    load. `tally` gets the number of `returned_prompts`, see `grouped_ratings`, and of the rows that
    fill a column of `other_columns.NOT_READ`, under its name. Raises UserError where the dataset
    cannot be read at all, or does not have what `preferred_by` or `columns` name, or the columns of
    any format.
    With `sample` the first so many rows are enough.
    """
    reading = Reading(format, preferred_by, columns, Counter() if tally is None else tally)
    found = _read(source, read_rows(source, subset, split, columns, sample), reading)
    return watched(source.source, found, columns)


def _read(source: Located, rows: Rows, reading: Reading) -> Iterator[tuple[int, Read]]:
    rows = iter(rows)
    for number, row in rows:
        try:
            known = _settle(source, row, reading)
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
        yield from _paired(rows, reading)
        return
    for number, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            found = row_format(row, known) if reading.format == "auto" else known
            pair = to_pair(row, found, reading.columns, reading.preferred_by)
        except BadRow as bad:
            yield number, _shown(bad, row)
        except LeftOut as left_out:
            yield number, left_out
        else:
            count_not_read(row, pair.prompt, reading.tally)
            yield number, pair


def _settle(source: Located, row: Row | BadRow, reading: Reading) -> str:
    """The dataset's format, once a row is readable; raises UserError, BadRow or LeftOut."""
    if isinstance(row, BadRow):
        raise row
    known = detect_format(row) if reading.format == "auto" else reading.format
    try:
        check_preferred_by(row, known, reading.preferred_by)
    except UserError as error:
        raise UserError(f"{source.source}: {error}") from error
    return known


def _paired(rows: Rows, reading: Reading) -> Iterator[tuple[int, Read]]:
    assert reading.preferred_by is not None
    rated = _rated(rows, reading.tally)
    for number, found in pair_grouped(rated, reading.preferred_by, reading.columns, reading.tally):
        try:
            yield (
                number,
                canonical(found, reading.columns) if isinstance(found, Comparison) else found,
            )
        except BadRow as bad:
            yield number, _shown(bad, found)
        except LeftOut as left_out:
            yield number, left_out


def _rated(rows: Rows, tally: Counter[str]) -> Iterator[tuple[int, Rated | BadRow]]:
    for number, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            rated = from_helpsteer(row)
        except BadRow as bad:
            yield number, _shown(bad, row)
        else:
            count_not_read(row, rated.prompt, tally)
            yield number, rated


SHOWN = reprlib.Repr()
"""Shows rows, however deep or long they are."""
SHOWN.maxdict = SHOWN.maxlist = 20
SHOWN.maxstring = SHOWN.maxother = CUT
SHOWN.maxlevel = 6


def _shown(bad: BadRow, row: Any) -> BadRow:
    """A bad row with as much of its text as its reader needs."""
    text = bad.text or (SHOWN.repr(row) if not isinstance(row, BadRow) else "")
    bad.text = text.encode(errors="replace").decode()[:CUT]
    return bad.with_traceback(None)  # which would keep the row
