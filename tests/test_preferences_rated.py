"""Rated responses become pairs: the best against the worst by the rating that the recipe names."""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.formats import detect_format, to_pair
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Pair
from vcsoup_dist.preferences.rows import read_pairs


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


PKU = {
    "prompt": "How do I peel an onion?",
    "response_0": "Ask somebody else.",
    "response_1": "With a very sharp knife, in the dark.",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "response_0_severity_level": 0,
    "response_1_severity_level": 2,
    "better_response_id": 1,
    "safer_response_id": 0,
}


def completion(text: str, overall: object, honesty: object = "3") -> dict[str, object]:
    annotations = {
        "honesty": {"Rating": honesty, "Rationale": "as it is"},
        "helpfulness": {"Type": ["1"], "Rating": "4", "Rationale": "it helps"},
    }
    return {
        "model": "m", "response": text, "overall_score": overall, "annotations": annotations
    }  # fmt: skip


def ultrafeedback(*completions: dict[str, object]) -> dict[str, object]:
    return {"source": "made up", "instruction": "Name a fruit.", "completions": [*completions]}


def helpsteer(prompt: str, response: str, rating: object, **other: object) -> dict[str, object]:
    return {"prompt": prompt, "response": response, "helpfulness": rating, "verbosity": 1, **other}


def read(tmp_path: Path, rows, **settings):
    """What becomes of each row, by row number, and the tally."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tally: Counter[str] = Counter()
    found = list(read_pairs(Located(str(file), None, None), tally=tally, **settings))
    by_row = dict(found)
    assert sorted(by_row) == list(range(1, len(rows) + 1)) and len(found) == len(rows)
    return by_row, tally


def answers(found) -> list[tuple[str, str]]:
    return [(each.chosen, each.rejected) for each in found.values() if isinstance(each, Pair)]


def reasons(found) -> dict[int, str]:
    return {
        number: each.reason for number, each in found.items() if isinstance(each, LeftOut | BadRow)
    }


def test_a_row_of_pku_gives_two_values_their_own_order_and_the_labels_as_columns():
    names = ["better", "safer", "severity_level"]
    columns = [f"{side}_{name}" for side in ("chosen", "rejected") for name in names]
    assert detect_format(PKU) == "pku"
    better, safer = (to_pair(PKU, "pku", columns, by) for by in ("better", "safer"))
    assert (better.chosen, better.rejected) == (PKU["response_1"], PKU["response_0"])
    assert (safer.chosen, safer.rejected) == (PKU["response_0"], PKU["response_1"])
    assert better.prompt == [user("How do I peel an onion?")]
    assert list(better.columns.values()) == [1, 0, 2, 0, 1, 0]
    assert list(safer.columns.values()) == [0, 1, 0, 1, 0, 2]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"better_response_id": 2}, "`better_response_id` is neither 0 nor 1"),
        ({"better_response_id": None}, "column `better_response_id` is null"),
        ({"response_1": None}, "column `response_1` is null"),
        ({"response_1": ["x"]}, "`response_1` is a list of texts, not a text"),
        ({"response_1": " "}, "empty response"),
        ({"response_1": PKU["response_0"]}, "chosen equals rejected"),
    ],
)
def test_a_bad_row_of_pku_is_refused_with_its_reason(changed, reason):
    with pytest.raises(BadRow, match=reason):
        to_pair({**PKU, **changed}, "pku", [], "better")


@pytest.mark.parametrize(
    ("changed", "column", "reason"),
    [
        ({"response_0_severity_level": "mild"}, "chosen_severity_level", "`response_0_severity_l"),
        ({"safer_response_id": -1}, "rejected_safer", "`safer_response_id` is neither 0 nor 1"),
    ],
)
def test_labels_of_pku_that_nothing_uses_may_hold_anything(changed, column, reason):
    row = {**PKU, **changed}
    assert to_pair(row, "pku", [], "better") == to_pair(PKU, "pku", [], "better")
    with pytest.raises(BadRow, match=reason):
        to_pair(row, "pku", [column], "better")


@pytest.mark.parametrize("convert", [str, float, bool])
def test_labels_of_pku_may_be_texts_or_truths(convert):
    labels = {name: convert(PKU[name]) for name in ("better_response_id", "safer_response_id")}
    for by in ("better", "safer"):
        columns = [f"chosen_{by}", "rejected_safer"]
        assert to_pair({**PKU, **labels}, "pku", columns, by) == to_pair(PKU, "pku", columns, by)


def test_a_label_that_only_some_rows_have_leaves_out_the_others():
    with pytest.raises(LeftOut, match="no rating for `chosen_safer`"):
        to_pair({**PKU, "safer_response_id": None}, "pku", ["chosen_safer"], "better")


def test_ultrafeedback_pairs_its_best_and_worst_completion_and_keeps_their_ratings():
    row = ultrafeedback(
        completion("Apple.", 7.0, "5"),
        completion("Carrot.", 2.0, "N/A"),
        completion("Pear.", 7.0, "2"),
        completion("Brick.", 2.0, "1"),
    )
    assert detect_format(row) == "ultrafeedback"
    columns = ["chosen_overall_score", "rejected_overall_score", "chosen_helpfulness"]
    pair = to_pair(row, "ultrafeedback", columns, "overall_score")
    assert (pair.chosen, pair.rejected) == ("Apple.", "Carrot.")
    assert pair.prompt == [user("Name a fruit.")]
    assert list(pair.columns.values()) == [7, 2, 4]
    by_honesty = to_pair(row, "ultrafeedback", ["chosen_honesty", "rejected_honesty"], "honesty")
    assert (by_honesty.chosen, by_honesty.rejected) == ("Apple.", "Brick.")
    assert by_honesty.columns == {"chosen_honesty": 5, "rejected_honesty": 1}
    unrated = ultrafeedback(completion("Apple.", 7.0), completion("Carrot.", 2.0, "N/A"))
    with pytest.raises(LeftOut, match="no rating for `rejected_honesty`"):
        to_pair(unrated, "ultrafeedback", ["rejected_honesty"], "overall_score")
    with pytest.raises(BadRow, match="missing column `chosen_colour`"):
        to_pair(row, "ultrafeedback", ["chosen_colour"], "overall_score")


def test_of_equal_completions_those_with_the_ratings_that_rewards_name_are_paired():
    row = ultrafeedback(
        completion("Apple.", 7.0, "N/A"),
        completion("Pear.", 7.0, "2"),
        completion("Fig.", 7.0, "4"),
        completion("Brick.", 1.0, "N/A"),
        completion("Stone.", 1.0, "1"),
    )
    columns = ["chosen_honesty", "rejected_honesty"]
    pair = to_pair(row, "ultrafeedback", columns, "overall_score")
    assert (pair.chosen, pair.rejected) == ("Pear.", "Stone.")
    pair = to_pair(row, "ultrafeedback", ["rejected_honesty"], "overall_score")
    assert (pair.chosen, pair.rejected) == ("Apple.", "Stone.")


@pytest.mark.parametrize(
    ("completions", "kind", "reason"),
    [
        ([completion("a", 3.0), completion("b", 3.0)], LeftOut, "tie by `overall_score`"),
        ([completion("a", 3.0)], LeftOut, "fewer than two rated responses"),
        ([completion("a", 3.0), completion("b", "N/A")], LeftOut, "fewer than two rated"),
        ([completion("a", 3.0), completion(" ", 1.0)], LeftOut, "fewer than two rated"),
        (["a", "b"], BadRow, "`completions` is a list of texts, not a list of responses"),
        (None, BadRow, "column `completions` is null"),
        ([completion("a", 3.0), completion("a", 1.0)], BadRow, "chosen equals rejected"),
    ],
)
def test_completions_that_make_no_pair_say_why(completions, kind, reason):
    row = {"instruction": "Name a fruit.", "completions": completions}
    with pytest.raises(kind, match=reason):
        to_pair(row, "ultrafeedback", [], "overall_score")


def test_consecutive_rows_of_helpsteer_are_paired_best_against_worst(tmp_path: Path):
    rows = [
        helpsteer("a", "good", 4),
        helpsteer("a", "bad", 1, verbosity=3),
        helpsteer("b", "middling", 2),
        helpsteer("b", "worst", 0),
        helpsteer("b", "best", 4),
        helpsteer("b", "middling too", 1),
        helpsteer("c", "one", 2),
        helpsteer("c", "other", 2),
        helpsteer("d", "alone", 3),
    ]
    columns = ["chosen_helpfulness", "rejected_verbosity"]
    found, tally = read(tmp_path, rows, preferred_by="helpfulness", columns=columns)
    assert answers(found) == [("good", "bad"), ("best", "worst")]
    assert found[1] is None and found[4] is None
    assert isinstance(found[2], Pair) and found[2].columns == dict(
        zip(columns, (4, 3), strict=True)
    )
    assert reasons(found) == {
        3: "neither best nor worst of its prompt",
        6: "neither best nor worst of its prompt",
        7: "tie by `helpfulness`",
        8: "tie by `helpfulness`",
        9: "the only response to its prompt",
    }
    assert tally == {}


def test_another_rating_turns_the_pair_round(tmp_path: Path):
    rows = [helpsteer("a", "long", 4, verbosity=0), helpsteer("a", "short", 1, verbosity=4)]
    found, _ = read(tmp_path, rows, preferred_by="verbosity")
    assert answers(found) == [("short", "long")]


def test_a_bad_row_of_helpsteer_does_not_split_its_group(tmp_path: Path):
    rows = [
        helpsteer("a", "good", 4),
        helpsteer("a", " ", 0),
        helpsteer("a", "unrated", None),
        helpsteer("a", "rated in words", "good"),
        helpsteer("a", "bad", 1),
        helpsteer("", "answer", 1),
    ]
    found, _ = read(tmp_path, rows, preferred_by="helpfulness")
    assert answers(found) == [("good", "bad")]
    unrated = [number for number, each in found.items() if isinstance(each, LeftOut)]
    assert unrated == [3, 4]
    assert reasons(found) == {
        2: "empty response",
        3: "no rating for `helpfulness`",
        4: "no rating for `helpfulness`",
        6: "empty prompt",
    }


def test_a_prompt_that_comes_back_is_counted_and_paired_anew(tmp_path: Path):
    rows = [helpsteer(prompt, f"{prompt}{i}", i) for i in range(3) for prompt in "ab"]
    rows += [helpsteer("a", "x", 1), helpsteer("a", "y", 2)]
    found, tally = read(tmp_path, rows, preferred_by="helpfulness")
    assert answers(found) == [("y", "x")]
    assert tally == {"returned_prompts": 5}


def test_several_turns_of_helpsteer_become_messages(tmp_path: Path):
    prompt = "Hi\n<extra_id_1>Assistant\nHello,\nyou\n<extra_id_1>User\nWhy?"
    rows = [helpsteer(prompt, "good", 4), helpsteer(prompt, "bad", 1)]
    ended_by_assistant = "Hi\n<extra_id_1>Assistant\nHello"
    found, _ = read(
        tmp_path, [*rows, helpsteer(ended_by_assistant, "x", 1)], preferred_by="helpfulness"
    )
    assert isinstance(found[2], Pair)
    assert found[2].prompt == [
        user("Hi"), {"role": "assistant", "content": "Hello,\nyou"}, user("Why?")
    ]  # fmt: skip
    assert reasons(found) == {3: "wrong roles: user, assistant; a prompt ends with the user"}


def test_turns_of_helpsteer_may_end_in_carriage_returns_and_stray_marks_are_refused(tmp_path):
    prompt = "Hi\r\n<extra_id_1>Assistant\r\nHello\r\n<extra_id_1>User\r\nWhy?"
    rows = [helpsteer(prompt, "good", 4), helpsteer(prompt, "bad", 1)]
    rows += [helpsteer("Hi <extra_id_1>Assistant\nHello", "x", 1)]
    found, _ = read(tmp_path, rows, preferred_by="helpfulness")
    assert isinstance(found[2], Pair)
    assert [each["content"] for each in found[2].prompt] == ["Hi", "Hello", "Why?"]
    assert reasons(found) == {3: "`<extra_id_1>` that does not begin a turn"}


TIED = st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.booleans(), st.booleans())


@given(st.lists(TIED, max_size=20))
def test_equal_rows_of_a_prompt_yield_to_the_first_with_all_ratings(tmp_path_factory, drawn):
    rows = [
        helpsteer(prompt, f"r{i}", rating, good=1 if good else None, bad=1 if bad else None)
        for i, (prompt, rating, good, bad) in enumerate(drawn)
    ]
    expected = []
    for _, run in groupby(enumerate(drawn), key=lambda item: item[1][0]):
        run = list(run)
        best = max(run, key=lambda item: (item[1][1], item[1][2]))
        worst = max(run, key=lambda item: (-item[1][1], item[1][3]))
        if best[1][1] > worst[1][1] and best[1][2] and worst[1][3]:
            expected.append((f"r{best[0]}", f"r{worst[0]}"))
    found, _ = read(
        tmp_path_factory.mktemp("rows"), rows,
        preferred_by="helpfulness", columns=["chosen_good", "rejected_bad"],
    )  # fmt: skip
    assert answers(dict(sorted(found.items()))) == expected
    assert not any(isinstance(each, BadRow) for each in found.values())


def test_a_score_that_no_rated_row_has_is_told_with_those_that_there_are(tmp_path: Path):
    for format, (rows, by, offered) in {
        "helpsteer": (
            [helpsteer("a", "x", 1), helpsteer("a", "y", 2)],
            "helpfulness",
            "chosen_helpfulness, chosen_verbosity, rejected_helpfulness, rejected_verbosity",
        ),
        "pku": ([PKU], "better", "chosen_better, rejected_better"),
    }.items():
        with pytest.raises(UserError, match=f"`chosen_x`, which none .* offers: {offered}$"):
            read(tmp_path, rows, format=format, preferred_by=by, columns=["chosen_x"])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4)), max_size=30))
def test_every_run_of_a_prompt_gives_its_first_best_and_first_worst(tmp_path_factory, drawn):
    rows = [helpsteer(prompt, f"r{i}", rating) for i, (prompt, rating) in enumerate(drawn)]
    expected, at = [], 0
    while at < len(drawn):
        end = at
        while end < len(drawn) and drawn[end][0] == drawn[at][0]:
            end += 1
        ratings = [rating for _, rating in drawn[at:end]]
        if min(ratings) < max(ratings):
            best, worst = ratings.index(max(ratings)), ratings.index(min(ratings))
            expected.append((f"r{at + best}", f"r{at + worst}"))
        at = end
    found, _ = read(tmp_path_factory.mktemp("rows"), rows, preferred_by="helpfulness")
    assert answers(dict(sorted(found.items()))) == expected
    assert sum(each is None for each in found.values()) == len(expected)


NESTED = {
    "pku": ([PKU], "safer"),
    "ultrafeedback": (
        [
            ultrafeedback(completion("Apple.", 7.0, "N/A"), completion("Brick.", 2.0, "1")),
            ultrafeedback(completion("Pear.", 3.0), completion("Fig.", 3.0)),
            ultrafeedback(completion("Lime.", None, "5"), completion("Kiwi.", 4.0, "2")),
        ],
        "overall_score",
    ),
    "helpsteer": ([helpsteer("a", "bad", 0), helpsteer("a", "good", 1)], "helpfulness"),
}


@pytest.mark.parametrize("format", NESTED)
def test_parquet_and_a_folder_give_what_json_lines_give(tmp_path: Path, monkeypatch, format):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / ".cache")
    rows, preferred_by = NESTED[format]
    found, _ = read(tmp_path, rows, preferred_by=preferred_by)
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows.jsonl").rename(tmp_path / "folder" / "train.jsonl")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for place in ("rows.parquet", "folder"):
        located = Located(str(tmp_path / place), None, None)
        same = dict(read_pairs(located, preferred_by=preferred_by))
        assert (answers(same), reasons(same)) == (answers(found), reasons(found))
    assert len(answers(found)) == 1


OFFERS = {
    "pku": (PKU, "better, safer"),
    "helpsteer": (helpsteer("a", "x", 1), "helpfulness, verbosity"),
    "ultrafeedback": (ultrafeedback(completion("a", 1)), "overall_score, honesty, helpfulness"),
}


@pytest.mark.parametrize("preferred_by", [None, "kindness"])
@pytest.mark.parametrize("format", OFFERS)
def test_a_missing_or_unknown_preference_is_one_line_that_says_what_there_is(
    tmp_path: Path, format, preferred_by
):
    row, offered = OFFERS[format]
    for named in (format, "auto"):
        with pytest.raises(UserError) as refused:
            read(tmp_path, [row], format=named, preferred_by=preferred_by)
        message = str(refused.value)
        assert message.endswith(f"the data offers: {offered}") and "\n" not in message
        assert f"{tmp_path}" in message and f"format `{format}`" in message


def test_a_preference_for_rows_that_are_ordered_is_refused(tmp_path: Path):
    row = {"prompt": "x", "chosen": "a", "rejected": "b"}
    with pytest.raises(UserError, match="format `trl`.*remove the key"):
        read(tmp_path, [row], preferred_by="better")
