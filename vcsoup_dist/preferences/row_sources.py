"""Where the rows of a dataset lie: in a file, in the files of a folder's split, or on the hub."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.messages import MEDIA
from vcsoup_dist.preferences.pair import BadRow, Row
from vcsoup_dist.preferences.parquet_rows import (
    NOT_ASKED_FOR,
    ROWS_PER_BATCH,
    cells,
    wanted_columns,
)
from vcsoup_dist.preferences.row_files import file_kind, read_file
from vcsoup_dist.preferences.values import Unread


def read_rows(
    source: Located,
    subset: str | None,
    split: str,
    columns: Collection[str] = (),
    sample: int | None = None,
) -> Iterator[tuple[int, Row | BadRow]]:
    """(row number from 1, row) of a dataset; `columns` are those that rewards name.

    With `sample` the first so many rows are enough, and no cache of `datasets` is written. Raises
    UserError where it cannot be loaded, or a file of it is damaged.
    """
    if Path(source.source).is_file():
        yield from read_file(Path(source.source), columns)
        return
    files = split_files(source, subset, split)
    if files is None:
        loaded = (
            _loaded(source, subset, split, columns)
            if sample is None
            else _first(source, subset, split, sample)
        )
        yield from enumerate(loaded, start=1)
        return
    before = number = 0
    for file in files:
        for number, row in read_file(file, columns):
            yield before + number, row
        before, number = before + number, 0


def split_files(source: Located, subset: str | None, split: str) -> list[Path] | None:
    """The files of a local folder's split, or None where `datasets` alone can read them.

    Raises UserError where `datasets` finds no data.
    """
    if not Path(source.source).is_dir():
        return None
    import datasets

    try:
        builder = datasets.load_dataset_builder(source.source, **_subset(source, subset))
    except Exception as error:  # datasets, the hub and httpx each raise their own kinds
        raise _not_loaded(source, subset, split, error) from error
    given = (builder.config.data_files or {}).get(split)
    files = [Path(str(each)) for each in given or ()]
    if getattr(builder.config, "field", None) or not files or not all(map(file_kind, files)):
        return None
    return files if all(file.is_file() for file in files) else None


def _loaded(
    source: Located, subset: str | None, split: str, columns: Collection[str]
) -> Iterator[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(
            source.source, split=split, revision=source.revision, **_subset(source, subset)
        )
    except Exception as error:
        raise _not_loaded(source, subset, split, error) from error
    names = wanted_columns(rows.features.arrow_schema, columns)
    texts = rows.select_columns([name for name in names if name not in MEDIA])
    # Pictures are not decoded to see whether there are any.
    media = rows.select_columns([name for name in names if name in MEDIA]).with_format("arrow")
    other = dict.fromkeys(rows.column_names, NOT_ASKED_FOR)
    for start in range(0, len(rows), ROWS_PER_BATCH):
        end = min(start + ROWS_PER_BATCH, len(rows))
        batch = _converted(texts, start, end)
        if media.column_names:
            table = media[start:end]
            batch |= {name: cells(table.column(name)) for name in media.column_names}
        for i in range(end - start):
            yield other | {name: found[i] for name, found in batch.items()}


def _first(source: Located, subset: str | None, split: str, rows: int) -> list[Row]:
    import datasets

    try:
        stream = datasets.load_dataset(
            source.source,
            split=split,
            revision=source.revision,
            streaming=True,
            **_subset(source, subset),
        )
        return list(stream.take(rows))
    except Exception as error:
        raise _not_loaded(source, subset, split, error) from error


def _converted(rows: Any, start: int, end: int) -> dict[str, Any]:
    """Columns of some rows; a cell that cannot be converted is an Unread."""
    if not rows.column_names:
        return {}
    try:
        return dict(rows[start:end])
    except Exception:  # one of the cells; find out which
        return {
            name: [_cell(rows.select_columns([name]), i, name) for i in range(start, end)]
            for name in rows.column_names
        }


def _cell(rows: Any, i: int, name: str) -> Any:
    try:
        return rows[i][name]
    except UnicodeDecodeError:
        return Unread("not UTF-8")
    except Exception as error:
        return Unread(f"of a type that cannot be read ({type(error).__name__})")


def _subset(source: Located, subset: str | None) -> dict[str, str]:
    import datasets

    if subset is None:
        return {}
    known = datasets.get_dataset_config_names(source.source, revision=source.revision)
    return {"name": subset} if subset in known else {"data_dir": subset}


def _not_loaded(source: Located, subset: str | None, split: str, error: Exception) -> UserError:
    what = f"{source.source} (subset {subset}, split {split})"
    return UserError(f"{what}: cannot load it: {reason_of(error)}")
