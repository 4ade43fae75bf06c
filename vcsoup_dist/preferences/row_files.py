"""Rows of local files, streaming: JSON Lines, one JSON array, parquet.

Text may be compressed with gzip or Zstandard. A file that is damaged at any place is an error,
since nobody knows what is lost behind it; a line that is no JSON is one bad row.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from vcsoup_dist.errors import UserError
from vcsoup_dist.preferences.canonical import LONGEST
from vcsoup_dist.preferences.json_array import BOM, READ, Malformed, array_items, is_array
from vcsoup_dist.preferences.pair import BadRow, Row

CUT = 500  # characters of a bad row that are kept for its reader
LONGEST_LINE = 8 * LONGEST  # bytes; room for a few long texts with their escapes
ROWS_PER_BATCH = 256
ARRAY_OF_ROWS = re.compile(rb"\s*\[\s*\{")
WRAPPED_ROWS = re.compile(rb'\s*\{\s*"(data|rows|train|examples|instances)"\s*:\s*\[\s*\{')
OPEN_BRACE = re.compile(rb"\s*\{[ \t]*\r?\n")
ENDINGS: dict[str, Literal["json", "parquet"]] = {
    **{f".{kind}{packed}": "json" for kind in ("jsonl", "json") for packed in ("", ".gz", ".zst")},
    ".parquet": "parquet",
}


def file_kind(path: Path) -> Literal["json", "parquet"] | None:
    """What a file's name says it holds, or None where it is no name of a file of rows."""
    return next((kind for ending, kind in ENDINGS.items() if path.name.endswith(ending)), None)


def read_file(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    """(row number from 1, row) of a file; a line's number for JSON Lines.

    Raises UserError where the file is of another kind, or damaged.
    """
    kind = file_kind(path)
    if kind is None:
        raise UserError(f"{path}: not one of {', '.join(ENDINGS)}; convert it to one of them")
    number = 0
    try:
        for number, row in _parquet(path) if kind == "parquet" else _json(path):
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
        _check_layout(path, file)
        if _holds_array(path, file):
            for number, item in enumerate(array_items(file), start=1):
                yield number, item if isinstance(item, dict) else BadRow("no JSON object")
        else:
            yield from _lines(file)


def _check_layout(path: Path, file: io.BufferedReader) -> None:
    """Say what is one JSON text but neither JSON Lines nor an array of rows; raises UserError."""
    start = file.peek(READ)[:READ].removeprefix(BOM)
    if ".jsonl" in path.suffixes and ARRAY_OF_ROWS.match(start):
        raise UserError(f"{path}: one JSON array, not a row per line; call the file .json")
    if found := WRAPPED_ROWS.match(start):
        name = found[1].decode()
        raise UserError(
            f"{path}: one JSON object that holds its rows as `{name}`; write that array by itself "
            f"(jq -c '.{name}[]' makes it JSON Lines)"
        )
    if OPEN_BRACE.match(start):
        raise UserError(
            f"{path}: JSON objects of several lines each; write a row per line (jq -c . does), or "
            "an array to a .json file"
        )


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
        return open(path, "rb")
    return io.BufferedReader(cast(io.RawIOBase, raw), 1 << 17)


def _lines(file: io.BufferedReader) -> Iterator[tuple[int, Row | BadRow]]:
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if not line.strip():
            continue
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            reason = f"over-long: a line of more than {LONGEST_LINE:,} bytes"
            yield number, BadRow(reason, _shown(line))
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            yield number, BadRow("not UTF-8", _shown(line))
        except (ValueError, RecursionError):
            yield number, BadRow("malformed JSON", _shown(line))
        else:
            yield number, row if isinstance(row, dict) else BadRow("no JSON object", _shown(line))


def _shown(line: bytes) -> str:
    return line[: 4 * CUT].decode(errors="replace")


def _parquet(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    import pyarrow.parquet as pq

    number = 0
    # So a column of a row group is read as it is needed; otherwise all of the file is held.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:  # one of the rows; find out which
                rows = [_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
            for row in rows:
                number += 1
                yield number, row


def _row(one: Any) -> Row | BadRow:
    try:
        return cast(Row, one.to_pylist()[0])
    except UnicodeDecodeError:
        return BadRow("not UTF-8")
