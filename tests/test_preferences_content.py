"""Files that do not hold what their names say are one line that says what they hold."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences import json_rows
from vcsoup_dist.preferences.pair import BadRow, Pair
from vcsoup_dist.preferences.row_files import read_file
from vcsoup_dist.preferences.rows import read_pairs

ROW = {"prompt": "why?", "chosen": "a é", "rejected": "b"}
TEXT = "".join(json.dumps(ROW, ensure_ascii=False) + "\n" for _ in range(3))
LINES = TEXT.encode()
PRETTY = json.dumps(ROW, indent=2).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([ROW]), sink)
    return sink.getvalue().to_pybytes()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
HOLDS = {
    "utf16.jsonl": (TEXT.encode("utf-16"), "UTF-16; convert it to UTF-8 (iconv -f UTF-16 "),
    "utf16be.jsonl": (b"\xfe\xff" + TEXT.encode("utf-16-be"), "UTF-16; convert"),
    "no_bom.jsonl": (TEXT.encode("utf-16-le"), "UTF-16LE; convert it to UTF-8"),
    "no_bom_be.json": (TEXT.encode("utf-16-be"), "UTF-16BE; convert it to UTF-8"),
    "utf32.jsonl": (TEXT.encode("utf-32"), "UTF-32; convert"),
    "utf32le.json": (("[" + TEXT).encode("utf-32-le"), "UTF-32LE; convert"),
    "utf16.jsonl.gz": (gzip.compress(TEXT.encode("utf-16")), "UTF-16; convert"),
    "cr.jsonl": (LINES.replace(b"\n", b"\r"), "CR alone (\\r)"),
    "cr.json.gz": (gzip.compress(LINES.replace(b"\n", b"\r")), "CR alone"),
    "packed.jsonl": (gzip.compress(LINES), "gzip; call the file packed.jsonl.gz"),
    "packed.json": (zstd(LINES), "Zstandard; call the file packed.json.zst"),
    "packed.jsonl.zst": (gzip.compress(LINES), "gzip; call the file packed.jsonl.gz"),
    "packed.parquet": (gzip.compress(LINES), "gzip; call the file packed.jsonl.gz"),
    "twice.jsonl.gz": (gzip.compress(gzip.compress(LINES)), "packed twice (gzip)"),
    "plain.jsonl.gz": (LINES, "not packed; call the file plain.jsonl"),
    "plain.json.zst": (b"\n[" + LINES, "not packed; call the file plain.json"),
    "bz.jsonl": (bz2.compress(LINES), "bzip2; unpack or convert"),
    "xz.jsonl": (lzma.compress(LINES), "xz; unpack or convert"),
    "zip.jsonl": (b"PK\x03\x04" + bytes(30), "a zip archive; unpack"),
    "table.jsonl": (parquet(), "parquet; call the file table.parquet"),
    "lines.parquet": (LINES, "JSON, not parquet; call it lines.jsonl"),
    "pointer.jsonl": (POINTER, "a Git LFS pointer, not the data; fetch it with `git lfs pull`"),
    "pointer.parquet": (POINTER, "a Git LFS pointer"),
    "pointer.jsonl.gz": (POINTER, "a Git LFS pointer"),
    "page.jsonl": (PAGE, "a web page (HTML or XML), not the data"),
    "page.parquet": (PAGE, "a web page"),
    "page.json.gz": (gzip.compress(PAGE), "a web page"),
    "array.jsonl": (b"[" + json.dumps(ROW).encode() + b"]", "one JSON array"),
    "empty_array.jsonl": (b"[]", "one JSON array"),
    "pretty.jsonl": (PRETTY, "JSON objects of several lines each"),
    "pretty.json": (PRETTY, "JSON objects of several lines each"),
    "crlf.json": (PRETTY.replace(b"\n", b"\r\n"), "JSON objects of several lines each"),
    "half.json": (b'{"prompt": "x",\n "chosen": "a", "rejected": "b"}', "of several lines each"),
    "csv.jsonl": (b"prompt,chosen,rejected\nx,a,b\n", "this looks like CSV; convert it: python -c"),
    "tsv.json": (b"prompt\tchosen\trejected\nx\ta\tb\n", "this looks like CSV"),
    "p.csv": (b"prompt,chosen,rejected\nx,a,b\n", "pandas.read_csv('p.csv'"),
    "columns.json": (b'{"prompt": {"0": "x"}, "chosen": {"0": "a"}}', "one JSON object of columns"),
}


@pytest.mark.parametrize("name", HOLDS)
def test_a_file_that_is_not_what_its_name_says_is_told_by_name_with_the_way_out(tmp_path, name):
    data, said = HOLDS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as refused:
        list(read_file(tmp_path / name))
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / name}: ") and "\n" not in message
    assert said in message


GOOD = json.dumps(ROW).encode()
ODD_LINES = {
    b'{"prompt": "x", "chosen": "a", "chosen": "c"}': "the key `chosen` appears twice",
    b'{"prompt": [{"role": "user", "role": "user"}]}': "the key `role` appears twice",
    b'{"prompt": "x", "n": ' + b"7" * 5000 + b"}": "a number of more than 4,300 digits",
    b'{"x": ' + b"[" * 9999 + b"]" * 9999 + b"}": "JSON nested too deep",
    b"{'prompt': 'x', 'chosen': 'a', 'rejected': 'b'}": "single quotes",
    GOOD + GOOD: "malformed JSON: more than one value in a line",
    b'{"prompt": "x", "chosen": "a", }': "malformed JSON (Expecting property name",
    b'{"prompt": "x\ty"}': "malformed JSON (Invalid control character)",
    b"[1, 2]": "not a JSON object",
    b'{"prompt": "caf\xe9"}': "not UTF-8",
}  # fmt: skip


@pytest.mark.parametrize("line", ODD_LINES, ids=ODD_LINES.values())
def test_an_odd_line_costs_itself_alone_with_its_reason_in_lines_and_in_an_array(tmp_path, line):
    (tmp_path / "p.jsonl").write_bytes(b"\n".join([GOOD, line, GOOD]))
    found = pairs(tmp_path / "p.jsonl")
    assert [type(each) for each in found] == [Pair, BadRow, Pair]
    assert found[1].reason.startswith(ODD_LINES[line]) or ODD_LINES[line] in found[1].reason
    if "digits" in ODD_LINES[line] or "twice" in ODD_LINES[line]:
        (tmp_path / "p.json").write_bytes(b"[" + b",\n".join([GOOD, line, GOOD]) + b"]")
        again = pairs(tmp_path / "p.json")
        assert [type(each) for each in again] == [Pair, BadRow, Pair]
        assert again[1].reason == found[1].reason


def pairs(path: Path, **settings):
    return [each for _, each in read_pairs(Located(str(path), None, None), **settings)]


def test_rows_that_nest_just_not_too_deep_are_read_and_shown(tmp_path):
    for depth in (400, 800, 950):
        deep = "[" * depth + "]" * depth
        lines = [f'{{"prompt": "x", "chosen": "a", "rejected": "b", "tools": {deep}}}']
        lines += [f'{{"prompt": {deep}, "chosen": "a", "rejected": "b"}}']
        (tmp_path / "p.jsonl").write_text("\n".join(lines))
        good, bad = pairs(tmp_path / "p.jsonl")
        assert isinstance(bad, BadRow) and len(bad.text) <= 500
        assert isinstance(good, Pair) or good.reason == json_rows.TOO_DEEP


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_line_ends_and_a_bom_of_windows_are_no_part_of_a_row(tmp_path, ends):
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", ends))
    assert [each.chosen for each in pairs(tmp_path / "p.jsonl")] == ["a é"] * 3


def test_a_first_line_that_is_cut_does_not_make_the_file_another_kind(tmp_path):
    for first in (b'{"prompt": "x",', b"prompt,chosen", b'{"prompt": [', b"{", b"[{"):
        (tmp_path / "p.jsonl").write_bytes(b"\n".join([first, GOOD, GOOD]))
        if first in (b"{", b"[{"):
            with pytest.raises(UserError):
                pairs(tmp_path / "p.jsonl")
        else:
            assert [type(each) for each in pairs(tmp_path / "p.jsonl")] == [BadRow, Pair, Pair]


SHAPES = {
    "SHP": {"history": "x", "human_ref_A": "a", "human_ref_B": "b", "labels": 1},
    "as in Nectar": {"prompt": "x", "answers": [{"answer": "a", "rank": 1}], "turns": 1},
    "rename `question` to `prompt`": {
        "system": "", "question": "x", "chosen": "a", "rejected": "b"},
    "rename `input` to `prompt`": {"input": "x", "chosen": "a", "rejected": "b"},
    "write the `input` of a row below its instruction": {
        "instruction": "x", "input": "y", "chosen": "a", "rejected": "b"},
    "rename `instruction` to `prompt`, `chosen_response` to `chosen`": {
        "instruction": "x", "chosen_response": "a", "rejected_response": "b"},
    "looks like ShareGPT: write `prompt`": {
        "conversations": [{"from": "human", "value": "x"}],
        "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
    "ShareGPT dialogues, one answer each": {"conversations": [{"from": "human", "value": "x"}]},
    "OpenAI's `messages`, one answer each": {"messages": [{"role": "user", "content": "x"}]},
    "HelpSteer3": {"context": [], "response1": "a", "response2": "b", "overall_preference": -2},
    "Chatbot Arena": {"conversation_a": [], "conversation_b": [], "winner": "model_a"},
    "WebGPT": {"question": {}, "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": -1},
    "summarize_from_feedback": {"info": {}, "summaries": [], "choice": 0},
    "as for KTO": {"prompt": "x", "completion": "a", "label": True},
    "Alpaca's instructions": {"instruction": "x", "input": "", "output": "a"},
    "list of ranked or rated answers": {"prompt": "x", "responses": ["a"], "scores": [1]},
    "two answers and a verdict": {"prompt": "x", "response_a": "a", "response_b": "b", "best": 1},
}  # fmt: skip


@pytest.mark.parametrize("said", SHAPES)
def test_data_of_another_shape_is_named_with_what_to_do(tmp_path, said):
    (tmp_path / "p.jsonl").write_text((json.dumps(SHAPES[said]) + "\n") * 3)
    with pytest.raises(UserError) as refused:
        pairs(tmp_path / "p.jsonl")
    message = str(refused.value)
    assert said in message and "\n" not in message
    assert ("rename " in message) == ("rename " in said or "`input` of a row" in said)
