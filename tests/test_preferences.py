"""Public formats of preference data become canonical pairs, and bad rows get a reason."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.preferences import canonical
from vcsoup_dist.preferences.formats import detect_format, to_pair
from vcsoup_dist.preferences.ordered import from_hh
from vcsoup_dist.preferences.pair import BadRow, Pair, pair_id, prompt_id, split_hash


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "be kind"}
TURNS = [user("hi"), assistant("hello"), user("why?")]
HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"

GOOD = {
    "strings": ({"prompt": "why?", "chosen": "a", "rejected": "b"}, [user("why?")]),
    "message lists": (
        {"prompt": [SYSTEM, *TURNS], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        [SYSTEM, *TURNS],
    ),
    "prompt messages, answer strings": ({"prompt": TURNS, "chosen": "a", "rejected": "b"}, TURNS),
    "prompt string, answer messages": (
        {"prompt": "why?", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        [user("why?")],
    ),
    "implicit prompt": (
        {"chosen": [*TURNS, assistant("a")], "rejected": [*TURNS, assistant("b")]},
        TURNS,
    ),
    "dialogues that repeat the prompt": (
        {"prompt": TURNS, "chosen": [*TURNS, assistant("a")], "rejected": [*TURNS, assistant("b")]},
        TURNS,
    ),
    "dialogues with a prompt string": (
        {
            "prompt": "why?",
            "chosen": [user("why?"), assistant("a")],
            "rejected": [user("why?"), assistant("b")],
        },
        [user("why?")],
    ),
    "hh": ({"chosen": HH + " a", "rejected": HH + " b"}, TURNS),
    "hh whose start is cut": (
        {"chosen": HH.lstrip() + " a", "rejected": HH.lstrip() + " b"},
        TURNS,
    ),
    "hh with its prompt": ({"prompt": HH, "chosen": HH + " a", "rejected": HH + " b"}, TURNS),
    "hh with an empty prompt": (
        {"prompt": "", "chosen": HH + " a", "rejected": HH + " b"},
        TURNS,
    ),
    "hh with a null prompt": ({"prompt": None, "chosen": HH + " a", "rejected": HH + " b"}, TURNS),
    "hh as prompt, bare answers": ({"prompt": HH, "chosen": " a", "rejected": " b"}, TURNS),
    "hh as prompt without its start": (
        {"prompt": HH.strip() + " ", "chosen": "a", "rejected": "b"},
        TURNS,
    ),
    "hh as prompt without the last mark": (
        {"prompt": HH.removesuffix("\n\nAssistant:"), "chosen": "a", "rejected": "b"},
        TURNS,
    ),
    "hh as prompt, answer messages": (
        {"prompt": HH, "chosen": [assistant("a")], "rejected": [assistant("b")]},
        TURNS,
    ),
    "the word Human in a prompt": (
        {"prompt": "Human: who is that?", "chosen": "a", "rejected": "b"},
        [user("Human: who is that?")],
    ),
}


@pytest.mark.parametrize(("row", "prompt"), GOOD.values(), ids=GOOD.keys())
def test_a_good_row_becomes_its_canonical_pair(row, prompt):
    pair = to_pair(row, detect_format(row))
    assert pair == Pair(pair_id(prompt, "a", "b"), prompt, "a", "b", {})


BAD = {
    "missing column `chosen`": {"prompt": "x", "rejected": "b"},
    "missing column `rejected`": {"prompt": "x", "chosen": "a"},
    "column `rejected` is null": {"prompt": "x", "chosen": "a", "rejected": None},
    "column `prompt` is null": {
        "prompt": None,
        "chosen": [assistant("a")],
        "rejected": [assistant("b")],
    },
    "missing column `prompt`": {"chosen": "a", "rejected": "b"},
    "empty response": {"prompt": "x", "chosen": "a", "rejected": " \n"},
    "empty prompt": {"prompt": "", "chosen": "a", "rejected": "b"},
    "chosen equals rejected": {"prompt": "x", "chosen": "a", "rejected": "a"},
    "wrong roles: user, user, user; user and assistant take turns": {
        "prompt": [user("x"), user("y"), user("z")],
        "chosen": "a",
        "rejected": "b",
    },
    "message without a role": {"prompt": [{"content": "x"}], "chosen": "a", "rejected": "b"},
    "`content` is a list of parts, one of type 'image'; only text is read": {
        "prompt": [{"role": "user", "content": [{"type": "image"}]}],
        "chosen": "a",
        "rejected": "b",
    },
    "`prompt` is a number, not a text or a list of messages": {
        "prompt": 7,
        "chosen": "a",
        "rejected": "b",
    },
    "chosen and rejected differ before the last answer": {
        "chosen": [user("x"), assistant("a")],
        "rejected": [user("y"), assistant("b")],
    },
    "not UTF-8": {"prompt": "x", "chosen": "a\ud800", "rejected": "b"},
    "one answer is a text, the other is not": {
        "prompt": "x",
        "chosen": "a",
        "rejected": [assistant("b")],
    },
    "both answers begin with the whole prompt": {
        "prompt": "Tell me all that you know about onions.",
        "chosen": "Tell me all that you know about onions.\nThey are round.",
        "rejected": "Tell me all that you know about onions. No.",
    },
}


@pytest.mark.parametrize(("reason", "row"), BAD.items(), ids=BAD.keys())
def test_a_bad_row_is_refused_with_its_reason(reason, row):
    with pytest.raises(BadRow) as refused:
        to_pair(row, detect_format(row))
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [assistant("x")], "chosen": "a", "rejected": "b"},
        {"prompt": [user("x"), assistant("y")], "chosen": "a", "rejected": "b"},
        {"prompt": [SYSTEM], "chosen": "a", "rejected": "b"},
        {"prompt": [user("x"), SYSTEM, user("y")], "chosen": "a", "rejected": "b"},
        {"prompt": [user("x")], "chosen": [user("a")], "rejected": [assistant("b")]},
        {"chosen": "\n\nHuman: x", "rejected": "\n\nHuman: x\n\nAssistant: b"},
        {"chosen": "\n\nAssistant: x", "rejected": "\n\nAssistant: b"},
    ],
)
def test_roles_that_do_not_take_turns_up_to_the_answer_are_wrong(row):
    with pytest.raises(BadRow, match="wrong roles"):
        to_pair(row, detect_format(row))


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (HH + " a", HH.replace("why", "what") + " b", "differ before"),
        (HH + " a", HH + " b\n\nHuman: and?\n\nAssistant: c", "differ before"),
        ("Question: " + HH + " a", HH + " b", "not a dialogue"),
        (HH + " a", "b", "not a dialogue"),
        (HH + " a", HH, "empty response"),
        (3, HH + " b", "`chosen` is a number"),
    ],
)
def test_bad_hh_dialogues_are_refused(chosen, rejected, reason):
    with pytest.raises(BadRow, match=reason):
        to_pair({"chosen": chosen, "rejected": rejected}, "hh")


@pytest.mark.parametrize(
    "score", ["3.5", True, None, float("nan"), float("inf"), 10**400, [1], Decimal("sNaN")]
)
def test_a_score_that_is_no_number_makes_a_bad_row(score):
    row = {"prompt": "x", "chosen": "a", "rejected": "b", "s": score}
    with pytest.raises(BadRow, match="column `s`"):
        to_pair(row, "trl", ["s"])


def test_answers_may_repeat_what_a_short_prompt_or_one_of_them_alone_says():
    short = {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi."}
    long = "Tell me all that you know about onions."
    one = {"prompt": long, "chosen": long + " Gladly.", "rejected": "No."}
    for row in (short, one):
        pair = to_pair(row, detect_format(row))
        assert (pair.prompt, pair.chosen) == ([user(row["prompt"])], row["chosen"])


def test_a_file_of_whole_dialogues_may_hold_prompts_with_bare_answers_too():
    whole = {"prompt": HH, "chosen": HH + " a", "rejected": HH + " b"}
    bare = {"prompt": HH, "chosen": " a", "rejected": " b"}
    assert detect_format(whole) == "hh"
    assert to_pair(whole, "hh") == to_pair(bare, "hh") == to_pair(bare, "trl")
    with pytest.raises(BadRow, match="whole dialogues .* as format `hh` has them"):
        to_pair(whole, "trl")


@pytest.mark.parametrize("score", [Decimal("1.5"), 1.5])
def test_a_score_may_be_a_decimal(score):
    row = {"prompt": "x", "chosen": "a", "rejected": "b", "s": score}
    assert to_pair(row, "trl", ["s"]).columns == {"s": 1.5}


def test_scores_are_read_from_named_columns_only():
    row = {"prompt": "x", "chosen": "a", "rejected": "b", "s": 3, "t": "?"}
    assert to_pair(row, "trl", ["s"]).columns == {"s": 3.0}


words = st.text(st.characters(codec="utf-8"), min_size=1).filter(
    lambda text: text.strip() and "\n\nHuman:" not in text and "\n\nAssistant:" not in text
)


@given(st.lists(words, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2), words, words)
def test_hh_text_gives_back_the_turns_it_was_written_from(turns, chosen, rejected):
    names = ["Human", "Assistant"]
    text = "".join(f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns))
    found = from_hh(
        {
            "chosen": f"{text}\n\nAssistant: {chosen}",
            "rejected": f"{text}\n\nAssistant: {rejected}",
        }
    )
    assert [message["content"] for message in found.prompt] == [turn.strip() for turn in turns]
    assert [found.chosen, found.rejected] == [chosen.strip(), rejected.strip()]


@given(words, words, words)
def test_an_id_depends_on_content_and_order_alone(prompt, chosen, rejected):
    keys_swapped = [{"content": prompt, "role": "user"}]
    assert pair_id([user(prompt)], chosen, rejected) == pair_id(keys_swapped, chosen, rejected)
    assert len(prompt_id(keys_swapped)) == 16
    if chosen != rejected:
        assert pair_id(keys_swapped, chosen, rejected) != pair_id(keys_swapped, rejected, chosen)


@given(st.lists(st.text(st.characters(codec="utf-8"))), st.text(st.characters(codec="utf-8")))
def test_an_id_is_the_hash_of_the_canonical_json(turns, answer):
    prompt = [user(turn) for turn in turns]
    for found, content in (
        (pair_id(prompt, answer, "b"), {"prompt": prompt, "chosen": answer, "rejected": "b"}),
        (f"{split_hash(prompt):016x}", prompt),
    ):
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        assert found == xxhash.xxh3_128_hexdigest(text.encode())[:16]
    text = json.dumps([["user", turn] for turn in turns], ensure_ascii=False)
    assert prompt_id(prompt) == xxhash.xxh3_128_hexdigest(text.encode())[:16]


def test_a_text_that_is_longer_than_any_model_reads_is_refused(monkeypatch):
    monkeypatch.setattr(canonical, "LONGEST", 5)
    row = {"prompt": "why?", "chosen": "short", "rejected": "b"}
    assert to_pair(row, "trl").chosen == "short"
    for column in row:
        with pytest.raises(BadRow, match="over-long"):
            to_pair({**row, column: "longer"}, "trl")
