"""Rows of local files, streaming: JSON Lines, one JSON array, parquet.

Text may be compressed with gzip or Zstandard. A file that is damaged at any place is an error,
since nobody knows what is lost behind it; a line that is not JSON is one bad row.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, cast

from vcsoup_dist.errors import UserError
from vcsoup_dist.preferences.file_content import HEAD, check_bytes, check_layout, csv_remedy
from vcsoup_dist.preferences.json_array import Malformed, array_items, is_array
from vcsoup_dist.preferences.json_rows import line_rows
from vcsoup_dist.preferences.pair import BadRow, Row
from vcsoup_dist.preferences.parquet_rows import parquet_rows

ENDINGS: dict[str, Literal["json", "parquet"]] = {
    **{f".{kind}{packed}": "json" for kind in ("jsonl", "json") for packed in ("", ".gz", ".zst")},
    ".parquet": "parquet",
}
TABLES = (".csv", ".tsv")


def file_kind(path: Path) -> Literal["json", "parquet"] | None:
    """What a file's name says it holds, or None where it is not the name of a file of rows."""
    return next((kind for ending, kind in ENDINGS.items() if path.name.endswith(ending)), None)


def conversion(path: Path) -> str:
    """What to do with a file of an unknown kind."""
    known = ", ".join(ENDINGS)
    return csv_remedy(path) if path.suffix in TABLES else f"convert it to one of {known}"


def read_file(path: Path, columns: Collection[str] = ()) -> Iterator[tuple[int, Row | BadRow]]:
    """(row number from 1, row) of a file; a line's number for JSON Lines.

    `columns` are those that rewards name. Raises UserError where the file is of another kind, or
    damaged.
    """
    kind = file_kind(path)
    if kind is None:
        raise UserError(f"{path}: not one of {', '.join(ENDINGS)}; {conversion(path)}")
    number = 0
    try:
        check_bytes(path, kind)
        rows = enumerate(parquet_rows(path, columns), 1) if kind == "parquet" else _json(path)
        for number, row in rows:
            yield number, row
    except _damage() as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: unreadable {kind} after row {number}: {reason}; is the file whole?"
        ) from error


def count_rows(path: Path) -> int | None:
    """Rows of a file of a known kind, or None where it is damaged; text is read, not parsed."""
    import pyarrow.parquet as pq

    try:
        if file_kind(path) == "parquet":
            return int(pq.read_metadata(path).num_rows)
        with _open(path) as file:
            if _holds_array(path, file):
                return sum(1 for _ in array_items(file))
            return sum(1 for line in file if line.strip())
    except _damage():
        return None


def _damage() -> tuple[type[Exception], ...]:
    """What reading a damaged file raises."""
    import pyarrow

    return (OSError, EOFError, zlib.error, Malformed, pyarrow.ArrowException)


def _json(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    with _open(path) as file:
        check_layout(path, file.peek(HEAD)[:HEAD])
        if not _holds_array(path, file):
            yield from line_rows(file)
            return
        for number, item in enumerate(array_items(file), start=1):
            yield number, item if isinstance(item, dict | BadRow) else BadRow("not a JSON object")


def _holds_array(path: Path, file: io.BufferedReader) -> bool:
    return ".jsonl" not in path.suffixes and is_array(file)


def _open(path: Path) -> io.BufferedReader:
    """The file's text, unpacked."""
    raw: BinaryIO
    if path.suffix == ".zst":
        import pyarrow

        # Closing the reader closes what it reads from, and that the file.
        raw = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
    elif path.suffix == ".gz":
        raw = cast(BinaryIO, gzip.GzipFile(path))
    else:
        return io.BufferedReader(io.FileIO(path), 2 * HEAD)
    return io.BufferedReader(cast(io.RawIOBase, raw), 2 * HEAD)
