"""Fields that change what a row means are read, make a bad row, or are warned of by name."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.formats import detect_format, to_pair
from vcsoup_dist.preferences.pair import BadRow, Pair
from vcsoup_dist.preferences.rows import read_pairs


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


PIRATE = system("You are a pirate.")
STRINGS = {"prompt": "why?", "chosen": "a", "rejected": "b"}
DIALOGUES = {
    "chosen": [user("why?"), assistant("a")],
    "rejected": [user("why?"), assistant("b")],
}
HH = {
    "chosen": "\n\nHuman: why?\n\nAssistant: a",
    "rejected": "\n\nHuman: why?\n\nAssistant: b",
}
PKU = {
    "prompt": "why?", "response_0": "b", "response_1": "a",
    "better_response_id": 1, "safer_response_id": 1,
}  # fmt: skip
ULTRAFEEDBACK = {
    "instruction": "why?",
    "completions": [
        {"response": "a", "overall_score": 5.0},
        {"response": "b", "overall_score": 1.0},
    ],
}
RATED = [
    {"prompt": "why?", "response": "a", "helpfulness": 4},
    {"prompt": "why?", "response": "b", "helpfulness": 1},
]
EVERY_FORMAT = {
    "strings": ([STRINGS], None),
    "messages": ([{**STRINGS, "prompt": [user("why?")]}], None),
    "implicit": ([DIALOGUES], None),
    "hh": ([HH], None),
    "pku": ([PKU], "better"),
    "ultrafeedback": ([ULTRAFEEDBACK], "overall_score"),
    "helpsteer": (RATED, "helpfulness"),
}


def read(folder: Path, rows, kind: str, preferred_by: str | None = None):
    """What becomes of rows in JSON Lines, parquet, or a folder; and what was counted."""
    tally: Counter[str] = Counter()
    path = folder
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if kind == "parquet":
        path = folder / "p.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path = folder / "p.jsonl"
        path.write_text(text)
    else:
        (folder / "train.jsonl").write_text(text)
    found = read_pairs(Located(str(path), None, None), preferred_by=preferred_by, tally=tally)
    return [each for _, each in found if each is not None], dict(tally)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
@pytest.mark.parametrize("format", EVERY_FORMAT)
def test_a_system_column_becomes_the_system_turn_in_every_format(tmp_path, format, kind):
    rows, preferred_by = EVERY_FORMAT[format]
    for name in ("system", "system_prompt"):
        given = [{**row, name: PIRATE["content"]} for row in rows]
        (pair,), tally = read(tmp_path, given, kind, preferred_by)
        assert isinstance(pair, Pair)
        assert (pair.prompt, pair.chosen, pair.rejected) == ([PIRATE, user("why?")], "a", "b")
        assert tally == {}


@pytest.mark.parametrize("format", EVERY_FORMAT)
@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_an_empty_system_column_adds_nothing(tmp_path, format, nothing):
    rows, preferred_by = EVERY_FORMAT[format]
    (pair,), _ = read(tmp_path, [{**row, "system": nothing} for row in rows], "jsonl", preferred_by)
    assert isinstance(pair, Pair) and pair.prompt == [user("why?")]


def test_a_system_column_must_agree_with_the_system_turn_there_is():
    row = {**STRINGS, "prompt": [PIRATE, user("why?")]}
    assert to_pair({**row, "system": "You are a pirate. "}, "trl") == to_pair(row, "trl")
    for other in ({"system": "be kind"}, {"system_prompt": "be kind"}):
        with pytest.raises(BadRow, match="differs from the system turn"):
            to_pair({**row, **other}, "trl")
    with pytest.raises(BadRow, match="`system` and `system_prompt` differ"):
        to_pair({**STRINGS, "system": "x", "system_prompt": "y"}, "trl")
    with pytest.raises(BadRow, match="`system` is a list"):
        to_pair({**STRINGS, "system": ["x"]}, "trl")


CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
SAYS_MORE = {
    "tool_calls": CALL,
    "function_call": {"name": "f", "arguments": "{}"},
    "reasoning_content": "Let me think.",
    "thinking": "Let me think.",
    "images": ["a.png"],
    "audio": {"id": "audio_1"},
}


@pytest.mark.parametrize("name", SAYS_MORE)
def test_a_message_that_says_more_than_its_text_is_a_bad_row_with_that_reason(name):
    odd = {**assistant("a"), name: SAYS_MORE[name]}
    rows = [
        {"prompt": "why?", "chosen": [odd], "rejected": [assistant("b")]},
        {"prompt": "why?", "chosen": odd, "rejected": assistant("b")},
        {"prompt": [user("x"), odd, user("y")], "chosen": "a", "rejected": "b"},
        {**DIALOGUES, "rejected": [user("why?"), odd]},
    ]
    for row in rows:
        with pytest.raises(BadRow, match=f"a message has `{name}`, which is not read"):
            to_pair(row, detect_format(row))
    answer = {"response": "a", "overall_score": 5.0, name: SAYS_MORE[name]}
    row = {"instruction": "x", "completions": [answer, {"response": "b", "overall_score": 1.0}]}
    with pytest.raises(BadRow, match=f"a completion has `{name}`"):
        to_pair(row, "ultrafeedback", [], "overall_score")


@pytest.mark.parametrize("empty", [None, [], {}, "", [None], {"name": None, "arguments": ""}])
def test_empty_fields_of_a_message_change_nothing(empty):
    answers = [{**assistant(text), **dict.fromkeys(SAYS_MORE, empty)} for text in "ab"]
    row = {"prompt": "why?", "chosen": answers[:1], "rejected": answers[1:]}
    assert to_pair(row, "trl") == to_pair(STRINGS, "trl")


BESIDE = {
    "tools": CALL,
    "input": "Guten Tag",
    "instruction": "Translate",
    "history": [["q", "a"]],
    "context": "A long text.",
    "documents": [{"title": "x"}],
    "images": [{"path": "a.png"}],
    "chat_template_kwargs": {"enable_thinking": False},
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_columns_that_belong_to_the_conversation_are_counted_by_name(tmp_path, kind):
    nothing = {name: type(value)() for name, value in BESIDE.items() if isinstance(value, str)}
    rows = [{**STRINGS, **BESIDE}] * 3 + [{**STRINGS, **nothing}, STRINGS]
    found, tally = read(tmp_path, rows, kind)
    assert [type(each) for each in found] == [Pair] * 5
    assert tally == dict.fromkeys(BESIDE, 3)


def test_columns_that_repeat_the_prompt_or_hold_nothing_are_not_counted(tmp_path):
    same = {"instruction": " why?", "input": "why", "tools": "[]", "images": [], "history": [[]]}
    _, tally = read(tmp_path, [{**STRINGS, **same}], "jsonl")
    assert tally == {}
    _, tally = read(tmp_path, [ULTRAFEEDBACK], "jsonl", "overall_score")
    assert tally == {}


CONTRADICTS = {
    "text": {"prompt": "what?", **DIALOGUES},
    "messages": {"prompt": [user("what?")], **DIALOGUES},
    "a turn too many": {"prompt": [user("hi"), assistant("ho"), user("why?")], **DIALOGUES},
    "system turn": {"prompt": [PIRATE, user("why?")], **DIALOGUES},
    "hh": {"prompt": "what?", **HH},
    "hh transcript": {"prompt": "\n\nHuman: what?\n\nAssistant:", **HH},
}


@pytest.mark.parametrize("row", CONTRADICTS.values(), ids=CONTRADICTS.keys())
def test_a_prompt_that_is_not_the_start_of_its_dialogues_is_a_bad_row(row):
    with pytest.raises(BadRow, match="`prompt` is not the start of the dialogues"):
        to_pair(row, detect_format(row))


TURNS = [user("hi"), assistant("ho"), user("why?")]
LONG = {"chosen": [*TURNS, assistant("a")], "rejected": [*TURNS, assistant("b")]}
AGREES = {
    "messages": TURNS,
    "the first question": "hi",
    "the last question": "why? ",
    "a transcript": "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: why?\n\nAssistant:",
    "nothing": "",
    "no messages": [],
}


@pytest.mark.parametrize("prompt", AGREES.values(), ids=AGREES.keys())
def test_a_prompt_that_agrees_with_its_dialogues_changes_nothing(prompt):
    assert to_pair({"prompt": prompt, **LONG}, "trl") == to_pair(LONG, "trl")


def parts(*texts: str) -> list[dict[str, object]]:
    return [{"type": "text", "text": text, "image_url": None} for text in texts]


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": [{"role": "user", "content": parts("wh", "y?")}],
            "chosen": "a",
            "rejected": "b",
        },
        {"prompt": parts("why?"), "chosen": parts("a"), "rejected": parts("b")},
        {"prompt": user("why?"), "chosen": assistant("a"), "rejected": assistant("b")},
        {
            "prompt": "why?",
            "chosen": [{"role": "assistant", "content": parts("a")}],
            "rejected": {"role": "assistant", "content": parts("", "b")},
        },
        {
            "chosen": [user("why?"), {"role": "assistant", "content": parts("a")}],
            "rejected": [{"role": "user", "content": parts("why?")}, assistant("b")],
        },
    ],
)
def test_typed_text_parts_and_lone_messages_are_read(row):
    assert to_pair(row, detect_format(row)) == to_pair(STRINGS, "trl")


REASONS = {
    "one of type 'image_url'": {**STRINGS, "prompt": [{"role": "user", "content": [
        {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}]}]},
    "a part of `content` has `image_url`": {**STRINGS, "prompt": [{"role": "user", "content": [
        {"type": "text", "text": "x", "image_url": {"url": "u"}}]}]},
    "`content` is null": {**STRINGS, "prompt": [{"role": "user", "content": None}]},
    "`content` is a list of texts": {**STRINGS, "prompt": [{"role": "user", "content": ["x"]}]},
    "message without `content`": {**STRINGS, "prompt": [{"role": "user", "text": "x"}]},
    "ShareGPT": {**STRINGS, "chosen": {"from": "gpt", "value": "a"}, "rejected": {}},
    "`prompt` is an empty list": {**STRINGS, "prompt": []},
    "`chosen` is an empty list": {**STRINGS, "chosen": []},
    "`prompt` is true or false": {**STRINGS, "prompt": True},
    "`chosen` is a number": {**STRINGS, "chosen": 3, "rejected": 4},
    "`chosen` is a list of texts": {**STRINGS, "chosen": ["a"]},
    "roles: assistant, user; a prompt begins with the user": {
        **STRINGS, "prompt": [assistant("x"), user("y")]},
    "roles: user, assistant, tool; user and": {
        **STRINGS, "prompt": [user("x"), assistant("y"), {"role": "tool", "content": "z"}]},
    "roles: user, assistant, tool; `chosen` ends with": {
        "chosen": [*DIALOGUES["chosen"], {"role": "tool", "content": "z"}], "rejected": []},
    "missing column `prompt`": {"chosen": assistant("a"), "rejected": assistant("b")},
    "empty response": {**STRINGS, "chosen": "\u200b \ufeff"},
    "empty prompt": {**STRINGS, "prompt": "\u200b"},
}  # fmt: skip
REASONS["roles: user, assistant, tool; `chosen` ends with"]["rejected"] = DIALOGUES["rejected"]


@pytest.mark.parametrize(("reason", "row"), REASONS.items(), ids=REASONS.keys())
def test_a_reason_says_what_was_found(reason, row):
    with pytest.raises(BadRow) as refused:
        to_pair(row, detect_format(row))
    assert reason in refused.value.reason and len(refused.value.reason) < 150


def test_reasons_about_roles_are_few_and_short_however_odd_the_roles():
    turns = [{"role": "x" * 1000, "content": "y"}] * 500
    with pytest.raises(BadRow) as refused:
        to_pair({**STRINGS, "prompt": turns}, "trl")
    assert len(refused.value.reason) < 300


def test_rows_of_both_ordered_formats_may_be_mixed_and_none_is_misread(tmp_path):
    rows = [STRINGS, HH, DIALOGUES, {"prompt": "why?", **HH}, RATED[0], HH]
    for first in (0, 1):
        found, _ = read(tmp_path, rows[first:] + rows[:first], "jsonl")
        pairs = [each for each in found if isinstance(each, Pair)]
        assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [([user("why?")], "a", "b")] * 5
        assert [each.reason for each in found if isinstance(each, BadRow)] == [
            "missing column `chosen`"
        ]


def written(*turns: dict[str, str], by=json.dumps) -> str:
    return str(by(list(turns)))


AS_TEXT = {
    "answers as JSON": {
        "prompt": "why?", "chosen": written(assistant("a")), "rejected": written(assistant("b"))},
    "dialogues as JSON": {
        "prompt": "why?", **{name: written(*turns) for name, turns in DIALOGUES.items()}},
    "dialogues as Python prints them": {
        "prompt": "why?", **{name: written(*turns, by=str) for name, turns in DIALOGUES.items()}},
    "lone answers": {
        "prompt": "why?",
        "chosen": json.dumps(assistant("a")), "rejected": json.dumps(assistant("b"))},
    "prompt as JSON": {**STRINGS, "prompt": written(user("why?"))},
    "prompt below a system column": {
        **STRINGS, "prompt": written(user("why?")), "system": "Be brief."},
}  # fmt: skip


@pytest.mark.parametrize("row", AS_TEXT.values(), ids=AS_TEXT.keys())
def test_messages_written_as_text_are_not_read_as_what_was_said(row):
    with pytest.raises(BadRow, match="messages written as text"):
        to_pair(row, detect_format(row))


@pytest.mark.parametrize(
    "row",
    [
        {**STRINGS, "chosen": written(assistant("a"))},
        {**STRINGS, "chosen": '{"role": "admin"}', "rejected": '{"role": "guest"}'},
        {**STRINGS, "chosen": "[1]", "rejected": "[{}]"},
        {**STRINGS, "prompt": "Explain " + written(user("why?"))},
        {**STRINGS, "prompt": '{"role": "admin", "level": 3}'},
    ],
)
def test_texts_that_hold_json_stay_texts(row):
    pair = to_pair(row, detect_format(row))
    assert (pair.prompt, pair.chosen) == ([user(row["prompt"])], row["chosen"])


@pytest.mark.parametrize("name", ["system", "input", "tools", "prompt"])
def test_nan_as_pandas_writes_it_for_null_is_nothing(tmp_path, name):
    row = {**(DIALOGUES if name == "prompt" else STRINGS), name: math.nan}
    found, tally = read(tmp_path, [row], "jsonl")
    assert [each.prompt for each in found] == [[user("why?")]] and not tally
