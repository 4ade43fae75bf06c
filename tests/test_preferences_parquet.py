"""Parquet: only the columns that are read are converted, and one bad cell is one bad row."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import BadRow, Pair
from vcsoup_dist.preferences.rows import read_pairs

PAIR = {
    "prompt": pa.array(["x", "y", "z"]),
    "chosen": pa.array(["a"] * 3),
    "rejected": pa.array(["b"] * 3),
}


class Odd(pa.ExtensionType):
    """A type that nobody else knows."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "tests.odd")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()


def invalid_utf8(values=(b"a", b"\xff", b"c")) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), 3, pa.array(values, pa.binary()).buffers())


FAR = pa.array([2**62, 0, -(2**62)])
UNUSED = {
    "dates beyond Python's": FAR.cast(pa.timestamp("us")),
    "dates of the year 300,000": pa.array([2**30, 0, 1], pa.int32()).cast(pa.date32()),
    "an unknown time zone": pa.array([0, 1, 2]).cast(pa.timestamp("us", "Mars/Olympus")),
    "nanoseconds": FAR.cast(pa.timestamp("ns")),
    "long durations": FAR.cast(pa.duration("s")),
    "bytes": pa.array([b"\xff", b"", None], pa.binary()),
    "invalid text": invalid_utf8(),
    "a type of its own": pa.ExtensionArray.from_storage(Odd(), pa.array([b"\xff"] * 3)),
    "nested nulls": pa.array([None, [None], [{"a": None}]], pa.list_(pa.struct({"a": pa.null()}))),
    "maps": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "fixed bytes": pa.array([b"abc"] * 3, pa.binary(3)),
    "dates within lists": pa.array([[2**62]] * 3).cast(pa.list_(pa.timestamp("us"))),
}


def read(path: Path, **settings):
    return [each for _, each in read_pairs(Located(str(path), None, None), **settings)]


@pytest.mark.parametrize("name", UNUSED)
def test_a_column_that_is_not_read_never_breaks_reading(tmp_path, name):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({**PAIR, "made at": UNUSED[name]}), path, store_schema=True)
    found = read(path)
    assert [each.prompt[0]["content"] for each in found] == ["x", "y", "z"]


@pytest.mark.parametrize("name", UNUSED)
def test_a_folder_of_parquet_is_as_good_as_a_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / ".cache")
    pq.write_table(pa.table({**PAIR, "made at": UNUSED[name]}), tmp_path / "train-00000.parquet")
    assert [type(each) for each in read(tmp_path)] == [Pair] * 3


@pytest.mark.parametrize("column", ["context", "tools", "input", "system_prompt"])
def test_a_damaged_cell_of_a_column_outside_the_pair_costs_a_row_only_where_it_is_read(
    tmp_path, column
):
    pq.write_table(
        pa.table({**PAIR, column: invalid_utf8((b"", b"\xff", b""))}), tmp_path / "p.parquet"
    )
    kinds = [type(each) for each in read(tmp_path / "p.parquet")]
    assert kinds == [Pair, BadRow if column == "system_prompt" else Pair, Pair]


NEEDED = {
    "`chosen` is not UTF-8": invalid_utf8(),
    "`chosen` is bytes": pa.array([b"a"] * 3, pa.binary()),
    "is of type datetime": pa.array([datetime(2026, 1, 1)] * 3),
    "`chosen` is of type timestamp[us], which cannot be read (": FAR.cast(pa.timestamp("us")),
    "column `chosen` is null": pa.array([None] * 3, pa.string()),
}


@pytest.mark.parametrize("reason", NEEDED)
def test_a_cell_that_is_needed_and_cannot_be_read_makes_a_bad_row_with_its_reason(tmp_path, reason):
    pq.write_table(pa.table({**PAIR, "chosen": NEEDED[reason]}), tmp_path / "p.parquet")
    found = read(tmp_path / "p.parquet")
    bad = [each for each in found if isinstance(each, BadRow)]
    assert bad and all(reason in each.reason for each in bad[:1])
    assert len(found) == 3


def test_every_way_to_keep_text_and_numbers_is_read(tmp_path):
    kinds = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ]
    for kind in kinds:
        columns = {name: each.cast(kind) for name, each in PAIR.items()}
        for numbers in (pa.float16(), pa.int8(), pa.decimal128(25, 2)):
            scores = pa.array([1, 2, 3]).cast(numbers)
            pq.write_table(pa.table({**columns, "s": scores}), tmp_path / "p.parquet")
            found = read(tmp_path / "p.parquet", columns=["s"])
            assert [each.columns for each in found] == [{"s": float(i)} for i in (1, 2, 3)]


def test_messages_of_any_list_type_are_read(tmp_path):
    message = pa.struct({"role": pa.string(), "content": pa.string(), "tool_calls": pa.null()})
    turns = [[{"role": "user", "content": text, "tool_calls": None}] for text in "xyz"]
    for kind in (pa.list_, pa.large_list):
        prompt = pa.array(turns, kind(message))
        pq.write_table(pa.table({**PAIR, "prompt": prompt}), tmp_path / "p.parquet")
        assert [each.prompt[0]["content"] for each in read(tmp_path / "p.parquet")] == [*"xyz"]


def test_a_column_that_is_there_twice_is_refused_where_it_is_read(tmp_path):
    for name in ("chosen", "unused"):
        arrays, names = [*PAIR.values(), PAIR["rejected"]], [*PAIR, name]
        names += [name] if name == "unused" else []
        arrays += [PAIR["rejected"]] if name == "unused" else []
        pq.write_table(pa.Table.from_arrays(arrays, names), tmp_path / "p.parquet")
        if name == "unused":
            assert [type(each) for each in read(tmp_path / "p.parquet")] == [Pair] * 3
        else:
            with pytest.raises(UserError, match="two columns are called `chosen`"):
                read(tmp_path / "p.parquet")


def test_columns_of_other_names_are_told_all_of_them(tmp_path):
    table = pa.table({"question": PAIR["prompt"], "when": UNUSED["dates beyond Python's"]})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(UserError, match="their columns are: question, when;"):
        read(tmp_path / "p.parquet")
    with pytest.raises(UserError, match="their columns are: question, when;"):
        read(tmp_path / "p.parquet", format="trl")


def test_scores_that_are_texts_or_decimals_say_so(tmp_path):
    table = pa.table({**PAIR, "s": pa.array(["1", "2", "3"]), "t": pa.array([Decimal("1.5")] * 3)})
    pq.write_table(table, tmp_path / "p.parquet")
    assert {each.reason for each in read(tmp_path / "p.parquet", columns=["s"])} == {
        "score column `s` is a text, not a number"
    }
    assert {each.columns["t"] for each in read(tmp_path / "p.parquet", columns=["t"])} == {1.5}


def test_a_folder_with_odd_json_lines_loses_the_odd_ones_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / ".cache")
    good = json.dumps({"prompt": "x", "chosen": "a", "rejected": "b"})
    mixed = json.dumps(
        {"prompt": [{"role": "user", "content": "x"}], "chosen": "a", "rejected": "b"}
    )
    (tmp_path / "train-1.jsonl").write_text(f"{good}\n{mixed}\n{good[:-3]}\n")
    (tmp_path / "train-2.jsonl").write_text(good)
    found = list(read_pairs(Located(str(tmp_path), None, None)))
    assert [(number, type(each)) for number, each in found] == [
        (1, Pair), (2, Pair), (3, BadRow), (4, Pair)
    ]  # fmt: skip
