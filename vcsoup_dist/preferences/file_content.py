"""What a file holds, by its first bytes, where that is not what its name says: one line each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from vcsoup_dist.errors import UserError

HEAD = 1 << 16  # bytes
BOM = b"\xef\xbb\xbf"
GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
UNPACKED_BY_NAME = {".gz": GZIP, ".zst": ZSTD}
NAMED = ((GZIP, "gzip", ".gz"), (ZSTD, "Zstandard", ".zst"))
OTHERS = (
    (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf", "a 7z archive"), (b"\x04\x22\x4d\x18", "lz4"), (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3", "an SQLite database"), (b"%PDF", "a PDF"), (b"\x89HDF", "HDF5"),
    (b"Obj\x01", "Avro"), (b"ORC", "ORC"), (b"\x93NUMPY", "a NumPy array"),
    (b"\x80\x04\x95", "a Python pickle"), (b"\x80\x05\x95", "a Python pickle"),
)  # fmt: skip
ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"), (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
)  # fmt: skip
WITHOUT_BOM = (
    (re.compile(rb"[\[{\s]\0\0\0"), "UTF-32LE"), (re.compile(rb"\0\0\0[\[{\s]"), "UTF-32BE"),
    (re.compile(rb"[\[{\s]\0[^\0]\0"), "UTF-16LE"), (re.compile(rb"\0[\[{\s]\0[^\0]"), "UTF-16BE"),
)  # fmt: skip
WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
LFS_POINTER = b"version https://git-lfs"
JSON_START = re.compile(rb"\s*[\[{]")
ARRAY = re.compile(rb"\s*\[\s*(\{|\])")
WRAPPED_ROWS = re.compile(
    rb'\s*\{\s*"(data|rows|train|test|examples|instances|items|records)"\s*:\s*\[\s*\{'
)
COLUMNS = re.compile(
    rb'\s*\{\s*"(id|prompt|question|instruction|chosen|rejected)"\s*:\s*\{\s*"0"\s*:'
)
OPEN_BRACE = re.compile(rb"\s*\{[ \t]*\r?\n")
MANY_LINES = re.compile(rb'\s*\{[^\n]*[,\[{][ \t]*\r?\n\s*["}\]]')
CARRIAGE_RETURNS = re.compile(rb"\}[ \t]*\r\s*\{")
CSV_CELL = re.compile(rb'"?\w[\w .-]{0,60}"?')
PANDAS = "to_json(…, orient='records', lines=True)"


def check_bytes(path: Path, kind: Literal["json", "parquet"]) -> None:
    """Raises UserError where a file's first bytes are not those of what its name says."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    _check_text(path, head)
    for start, name, ending in NAMED:
        if head.startswith(start) and path.suffix != ending:
            lines = ".json" if ".json" in path.suffixes else ".jsonl"
            raise UserError(
                f"{path}: the content is {name}; call the file {_stem(path)}{lines}{ending}"
            )
    for start, name in OTHERS:
        if head.startswith(start):
            raise UserError(f"{path}: the content is {name}; unpack or convert it to JSON Lines")
    if kind == "json" and head.startswith(PARQUET):
        raise UserError(f"{path}: the content is parquet; call the file {_stem(path)}.parquet")
    if kind == "parquet" and JSON_START.match(head):
        raise UserError(f"{path}: the content is JSON, not parquet; call it {_stem(path)}.jsonl")
    wanted = UNPACKED_BY_NAME.get(path.suffix)
    if wanted and JSON_START.match(head):
        raise UserError(f"{path}: the content is not packed; call the file {path.stem}")


def check_layout(path: Path, head: bytes) -> None:
    """Raises UserError where unpacked text is neither JSON Lines nor, by name, an array of rows.

    `head` is its start, up to HEAD bytes.
    """
    _check_text(path, head)
    for start, name, _ in NAMED:
        if head.startswith(start):
            raise UserError(f"{path}: the content is packed twice ({name}); unpack it once")
    head = head.removeprefix(BOM)
    if b"\n" not in head and CARRIAGE_RETURNS.search(head):
        raise UserError(
            f"{path}: its lines end in CR alone (\\r), as old Macs wrote them; convert them "
            "(tr '\\r' '\\n' < OLD > NEW)"
        )
    if ".jsonl" in path.suffixes and ARRAY.match(head):
        raise UserError(f"{path}: one JSON array, not a row per line; call the file .json")
    if found := WRAPPED_ROWS.match(head):
        name = found[1].decode()
        raise UserError(
            f"{path}: one JSON object that holds its rows as `{name}`; write that array by itself "
            f"(jq -c '.{name}[]' makes it JSON Lines)"
        )
    if COLUMNS.match(head):
        raise UserError(
            f"{path}: one JSON object of columns, not a row per line; with pandas write it by "
            f"{PANDAS}"
        )
    if OPEN_BRACE.match(head) or MANY_LINES.match(head):
        raise UserError(
            f"{path}: JSON objects of several lines each; write a row per line (jq -c . does), or "
            "an array to a .json file"
        )
    if _is_table(head):
        raise UserError(f"{path}: this looks like CSV; {csv_remedy(path)}")


def _is_table(head: bytes) -> bool:
    """Whether text begins with a line of names and continues with lines that are not objects."""
    first, *others = head[: HEAD // 8].lstrip().splitlines()[:2] or [b""]
    cells = re.split(rb"[,;\t]", first)
    return (
        len(cells) > 1
        and all(CSV_CELL.fullmatch(cell.strip()) for cell in cells)
        and not any(JSON_START.match(line) for line in others)
    )


def csv_remedy(path: Path) -> str:
    """How to make JSON Lines of a table in text."""
    return (
        f"convert it: python -c \"import pandas; pandas.read_csv('{path.name}', sep=None, "
        f"engine='python').to_json('{_stem(path)}.jsonl', orient='records', lines=True)\""
    )


def _check_text(path: Path, head: bytes) -> None:
    """Raises UserError for text that is not data at all, or not UTF-8 as a whole."""
    if head.startswith(LFS_POINTER):
        raise UserError(f"{path}: a Git LFS pointer, not the data; fetch it with `git lfs pull`")
    if head.removeprefix(BOM).lstrip()[:10].lower().startswith(WEB_PAGE):
        raise UserError(
            f"{path}: a web page (HTML or XML), not the data; download the file itself "
            "(a link of the hub has /resolve/, not /blob/)"
        )
    found = next((name for start, name in ENCODINGS if head.startswith(start)), None)
    found = found or next((name for start, name in WITHOUT_BOM if start.match(head)), None)
    if found:
        raise UserError(
            f"{path}: its text is {found}; convert it to UTF-8 "
            f"(iconv -f {found} -t UTF-8 OLD > NEW)"
        )


def _stem(path: Path) -> str:
    return re.sub(r"(\.(jsonl?|csv|tsv|txt))?(\.(gz|zst|parquet|csv|tsv|txt))?$", "", path.name)
