"""Whatever stands in a file: no traceback, and no pair that differs from what its row says."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Pair
from vcsoup_dist.preferences.rows import read_pairs

MANY = settings(max_examples=120)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["user", "assistant", "text", "\n\nHuman: x\n\nAssistant: y", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "tool_calls", "from", "value"])
        | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
NAMES = ("prompt", "chosen", "rejected", "system", "response", "instruction", "completions")
ODD_ROWS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUES, max_size=6)
PLAIN = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=20)
GOOD_ROWS = st.fixed_dictionaries(
    {"prompt": PLAIN, "chosen": PLAIN, "rejected": PLAIN},
    optional={"system": PLAIN, "n": st.floats()},
).filter(lambda row: row["chosen"] != row["rejected"])


def become(folder: Path, data: bytes, **options):
    """What becomes of a file's rows, or the line that refuses it."""
    path = folder / "p.jsonl"
    path.write_bytes(data)
    try:
        found = list(read_pairs(Located(str(path), None, None), **options))
    except UserError as error:
        assert "\n" not in str(error)
        return None
    assert all(each is None or isinstance(each, Pair | BadRow | LeftOut) for _, each in found)
    for _, each in found:
        if isinstance(each, BadRow):
            assert "\n" not in each.reason and len(each.reason) < 300 and len(each.text) <= 500
    return found


def said_by(row) -> tuple[list[dict[str, str]], str, str]:
    """The pair that a row of plain texts stands for."""
    turns = [{"role": "system", "content": row["system"]}] if "system" in row else []
    return [*turns, {"role": "user", "content": row["prompt"]}], row["chosen"], row["rejected"]


@MANY
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: ("{" + text).encode()))
def test_any_bytes_are_bad_rows_or_a_refusal(tmp_path_factory, data):
    assert not [each for _, each in become(tmp_path_factory.mktemp("f"), data) or ()
                if isinstance(each, Pair)]  # fmt: skip


@MANY
@given(st.lists(ODD_ROWS, max_size=4), st.sampled_from(["auto", "trl", "hh", "helpsteer"]))
def test_odd_types_in_every_field_never_raise_anything_else(tmp_path_factory, rows, format):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    rated = {"preferred_by": "n"} if format == "helpsteer" else {}
    become(tmp_path_factory.mktemp("f"), data, format=format, **rated)


@MANY
@example([{"prompt": "0", "chosen": "\U00010cb3", "rejected": "l", "system": "\U00010cb3"}])
@example([{"prompt": "0", "chosen": "0", "rejected": "l", "system": "null"}])
@given(st.lists(GOOD_ROWS | ODD_ROWS.map(lambda row: {"odd": row}), min_size=1, max_size=5))
def test_every_pair_is_what_its_row_says_and_no_good_row_is_lost(tmp_path_factory, rows):
    data = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows).encode()
    found = become(tmp_path_factory.mktemp("f"), data)
    good = {number: row for number, row in enumerate(rows, start=1) if "prompt" in row}
    if found is None:
        assert not good
        return
    pairs = {n: (p.prompt, p.chosen, p.rejected) for n, p in found if isinstance(p, Pair)}
    assert pairs == {number: said_by(row) for number, row in good.items()}


@MANY
@given(GOOD_ROWS, st.data())
def test_a_row_with_a_changed_byte_costs_no_other_and_is_not_misread(tmp_path_factory, row, draw):
    line = bytearray(json.dumps(row, ensure_ascii=False).encode())
    at = draw.draw(st.integers(0, len(line) - 1))
    line[at] = draw.draw(st.integers(0, 255).filter(lambda byte: byte not in b"\n\r"))
    plain = {"prompt": "why?", "chosen": "a", "rejected": "b"}
    around = json.dumps(plain).encode()
    found = become(tmp_path_factory.mktemp("f"), around + b"\n" + bytes(line) + b"\n" + around)
    assert found is not None
    by_row = {number: each for number, each in found}
    for number in (1, 3):
        pair = by_row[number]
        assert (pair.prompt, pair.chosen, pair.rejected) == said_by(plain)
    if isinstance(by_row.get(2), Pair):
        pair, changed = by_row[2], json.loads(line.decode())
        assert (pair.prompt, pair.chosen, pair.rejected) == said_by(
            {name: changed[name] for name in (*plain, "system") if name in changed}
        )
