"""Files of rows are read whatever their kind, and a damaged one is never taken for a whole one."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences import first_rows, json_array, json_rows
from vcsoup_dist.preferences.messages import MissingColumn
from vcsoup_dist.preferences.pair import BadRow, Pair
from vcsoup_dist.preferences.row_files import count_rows, file_kind, read_file
from vcsoup_dist.preferences.rows import read_pairs

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
PROMPT = [*TURNS, {"role": "user", "content": "why?"}]
ROWS = [{"prompt": PROMPT, "chosen": f"a{i} é", "rejected": "b", "s": float(i)} for i in range(600)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, indent=1, ensure_ascii=False).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def parquet(rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=250)
    return sink.getvalue().to_pybytes()


WHOLE = {
    "p.jsonl": LINES,
    "p.json": LINES,
    "array.json": ARRAY,
    "bom.json": b"\xef\xbb\xbf" + ARRAY,
    "p.jsonl.gz": gzip.compress(LINES),
    "parts.jsonl.gz": gzip.compress(LINES[:5000]) + gzip.compress(LINES[5000:]),
    "array.json.gz": gzip.compress(ARRAY),
    "p.jsonl.zst": zstd(LINES),
    "parts.jsonl.zst": zstd(LINES[:5000]) + zstd(LINES[5000:]),
    "array.json.zst": zstd(ARRAY),
    "p.parquet": parquet(ROWS),
}


def pairs(path: Path, **settings):
    return list(read_pairs(Located(str(path), None, None), **settings))


@pytest.mark.parametrize("name", WHOLE)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name):
    (tmp_path / name).write_bytes(WHOLE[name])
    assert list(read_file(tmp_path / name)) == list(enumerate(ROWS, start=1))
    assert count_rows(tmp_path / name) == len(ROWS)
    numbered = pairs(tmp_path / name, columns=["s"])
    assert [(n, pair.chosen, pair.columns) for n, pair in numbered if isinstance(pair, Pair)] == [
        (n, row["chosen"], {"s": row["s"]}) for n, row in enumerate(ROWS, start=1)
    ]


DAMAGED = {
    "cut.jsonl.gz": gzip.compress(LINES, 0)[:-5000],
    "end.jsonl.gz": gzip.compress(LINES)[:-1],
    "sum.jsonl.gz": gzip.compress(LINES)[:-8] + bytes(8),
    "tail.jsonl.gz": gzip.compress(LINES) + b"?",
    "cut.jsonl.zst": zstd(LINES)[:-50],
    "tail.jsonl.zst": zstd(LINES) + b"?",
    "cut.json": ARRAY[:-5000],
    "end.json": ARRAY[:-1],
    "comma.json": ARRAY[:-2] + b",]",
    "tail.json": ARRAY + b"{}",
    "middle.json": ARRAY.replace(b'"a300', b"a300"),
    "cut.parquet": parquet(ROWS)[:-1],
    "pages.parquet": bytes(3000) + parquet(ROWS)[3000:],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_line_with_its_name_and_the_last_row_read(tmp_path: Path, name):
    (tmp_path / name).write_bytes(DAMAGED[name])
    read = []
    with pytest.raises(UserError) as refused:
        for number, _ in read_file(tmp_path / name):
            read.append(number)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / name}: unreadable") and "\n" not in message
    assert f"after row {read[-1] if read else 0}:" in message


def test_the_rows_of_a_json_array_may_be_bad_one_by_one(tmp_path: Path):
    file = tmp_path / "p.json"
    good = json.dumps(ROWS[0]).encode()
    file.write_bytes(b"[" + b" , ".join([good, good.replace(b"a0", b"\xff"), b"3", good]) + b"]\n")
    reasons = [row.reason if isinstance(row, BadRow) else "" for _, row in pairs(file)]
    assert reasons == ["", "not UTF-8", "not a JSON object", ""]


ITEMS = st.lists(st.none() | st.integers() | st.text(max_size=9) | st.lists(st.text(max_size=3)))


@given(ITEMS, st.sampled_from([None, 0, 2]))
def test_an_array_is_read_item_by_item_across_the_reads(items, indent):
    text = json.dumps(items, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "READ", 3)
        file = io.BufferedReader(io.BytesIO(text))
        assert json_array.is_array(file)
        assert list(json_array.array_items(file)) == items


def test_bad_lines_of_a_jsonl_file_do_not_hide_the_good_ones(tmp_path: Path):
    good = json.dumps({"prompt": "x", "chosen": "a", "rejected": "b"}).encode()
    lines = [good[:-3], good.replace(b'"a"', b'"\xff"'), b"", good, b"[1]", b"[" * 100_000, good]
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b"\n".join(lines))
    found = pairs(file)
    assert [number for number, _ in found] == [1, 2, 4, 5, 6, 7]
    reasons = [row.reason if isinstance(row, BadRow) else "" for _, row in found]
    assert reasons == [
        "malformed JSON (Unterminated string starting)", "not UTF-8", "", "not a JSON object",
        "JSON nested too deep", "",
    ]  # fmt: skip
    assert all(len(row.text) <= 500 for _, row in found if isinstance(row, BadRow))


def test_an_over_long_line_is_one_bad_row(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(json_rows, "LONGEST_LINE", 100)
    file = tmp_path / "p.jsonl"
    row = {"prompt": "x", "chosen": "a", "rejected": "b"}
    lines = [row, {**row, "chosen": "a" * 950}, row]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [type(found) for _, found in pairs(file)] == [Pair, BadRow, Pair]


def test_text_in_parquet_that_is_not_utf8_is_one_bad_row(tmp_path: Path):
    binary = pa.array([b"a", b"\xff", b"c"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    same = pa.array(["x"] * 3)
    table = pa.table({"prompt": same, "chosen": text, "rejected": same})
    pq.write_table(table, tmp_path / "p.parquet")
    assert [type(row) for _, row in pairs(tmp_path / "p.parquet")] == [Pair, BadRow, Pair]


def test_a_folder_is_read_by_datasets_with_its_splits(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / ".cache")
    for split, answer in (("train", "a"), ("test", "c")):
        row = {"prompt": "x", "chosen": answer, "rejected": "b"}
        (tmp_path / "part").mkdir(exist_ok=True)
        (tmp_path / "part" / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    ((number, pair),) = pairs(tmp_path, subset="part", split="test")
    assert number == 1 and isinstance(pair, Pair) and pair.chosen == "c"
    with pytest.raises(UserError, match="split nosuch"):
        pairs(tmp_path, subset="part", split="nosuch")


LAYOUTS = {
    "wrapped.json": (json.dumps({"data": ROWS[:2]}).encode(), "holds its rows as `data`"),
    "indented.json": (json.dumps({"rows": ROWS[:2]}, indent=1).encode(), "its rows as `rows`"),
    "objects.jsonl": (json.dumps(ROWS[0], indent=1).encode(), "objects of several lines"),
    "array.jsonl": (ARRAY, "one JSON array.*call the file .json"),
    "array.jsonl.gz": (gzip.compress(ARRAY), "one JSON array.*call the file .json"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_json_that_is_neither_lines_nor_rows_in_an_array_says_how_to_mend_it(tmp_path, name):
    data, reason = LAYOUTS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=reason) as refused:
        pairs(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name}: ")


def lines_of(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_columns_of_other_names_are_told_with_those_that_there_are(tmp_path: Path):
    rows = [{"system": "s", "question": "q", "chosen": "a", "rejected": "b"}] * 3
    file = lines_of(tmp_path / "orca.jsonl", rows)
    for format in ("auto", "trl"):
        with pytest.raises(UserError) as refused:
            pairs(file, format=format)
        assert "no column `prompt`; their columns are: system, question, chosen, rejected;" in str(
            refused.value
        )


def test_a_score_column_that_no_row_has_is_told_after_the_first_rows(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(first_rows, "FIRST", 3)
    file = lines_of(tmp_path / "p.jsonl", ROWS)
    found = read_pairs(Located(str(file), None, None), columns=["score"])
    assert [type(next(found)[1]) for _ in range(2)] == [MissingColumn] * 2
    with pytest.raises(UserError, match="`score`, which none of the first 3 rows has; .*: s$"):
        next(found)


def test_a_score_column_that_some_row_has_makes_bad_rows_of_the_others(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(first_rows, "FIRST", 3)
    without = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in ROWS[:9]]
    for name, first in (("late", ROWS[:1]), ("null", [{**ROWS[0], "s": None}])):
        found = pairs(lines_of(tmp_path / f"{name}.jsonl", first + without), columns=["s"])
        assert {row.reason for _, row in found[1:]} == {"missing column `s`"} and len(found) == 10


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl.xz", "jsonl"])
def test_a_file_of_another_kind_is_one_clear_error(tmp_path: Path, name):
    assert file_kind(Path(name)) is None
    (tmp_path / name).write_text("prompt,chosen,rejected\n")
    with pytest.raises(UserError, match=r"not one of .jsonl, .*; convert it"):
        pairs(tmp_path / name)
