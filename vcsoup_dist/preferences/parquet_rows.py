"""Rows of parquet files, of which only the columns that a format knows are read and converted.

The other columns may hold what Python has no value for. A cell that cannot be converted is bad by
itself: it costs its row where its row needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.preferences.formats import COLUMNS
from vcsoup_dist.preferences.pair import Row
from vcsoup_dist.preferences.values import Unread

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_BATCH = 256
NOT_ASKED_FOR = Unread("a column that is not read")


def parquet_rows(path: Path, columns: Collection[str] = ()) -> Iterator[Row]:
    """The rows of a file; `columns` are those that rewards name.

    What is not read is there under its name as an Unread. Raises UserError for a doubled column.
    """
    import pyarrow.parquet as pq

    # So a column of a row group is read as it is needed; otherwise all of the file is held.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        schema = file.schema_arrow
        names = wanted_columns(schema, columns)
        if doubled := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{path}: two columns are called `{doubled[0]}`; rename one of them")
        other = dict.fromkeys(schema.names, NOT_ASKED_FOR)
        if not names:
            for _ in range(file.metadata.num_rows):
                yield other
            return
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=names):
            found = [cells(column) for column in batch.columns]
            for row in zip(*found, strict=True):
                yield other | dict(zip(batch.schema.names, row, strict=True))


def wanted_columns(schema: pa.Schema, columns: Collection[str]) -> list[str]:
    """Names of the columns that a format or a reward may read: numbers can be ratings."""
    return [
        field.name
        for field in schema
        if field.name in COLUMNS or field.name in columns or _is_rating(field.type)
    ]


def _is_rating(type: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(type):
        type = type.value_type
    return bool(
        pa.types.is_integer(type)
        or pa.types.is_floating(type)
        or pa.types.is_decimal(type)
        or pa.types.is_null(type)
    )


def cells(column: pa.Array) -> Sequence[Any]:
    """The values of a column in Python; an Unread where one cannot be converted."""
    try:
        return list(column.to_pylist())
    except Exception:  # Arrow, Python and types from elsewhere each raise their own kinds
        return [_cell(column, i) for i in range(len(column))]


def _cell(column: pa.Array, i: int) -> Any:
    try:
        return column[i].as_py()
    except UnicodeDecodeError:
        return Unread("not UTF-8")
    except Exception as error:
        return Unread(f"of type {column.type}, which cannot be read ({type(error).__name__})")
