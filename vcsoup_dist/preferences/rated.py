"""Formats whose answers are rated under several names; `preferred_by` says which one decides.

pku            prompt, response_0, response_1 and which of them is better and which safer, in
               better_response_id and safer_response_id (PKU-SafeRLHF)
ultrafeedback  instruction and completions, each with a response, an overall_score or
               fine-grained_score and annotations that hold a Rating as text (UltraFeedback)
helpsteer      a row is one rated response; rows of one prompt follow one another (HelpSteer,
               HelpSteer2); several user turns are separated by `<extra_id_1>`

The best and the worst answer make the pair. Where ratings are equal it is the earliest that has all
the ratings that rewards name, or the earliest at all. Whatever is rated becomes two columns of the
pair: chosen_<name> and rejected_<name>.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vcsoup_dist.preferences.canonical import Comparison, is_number, number
from vcsoup_dist.preferences.messages import (
    MissingColumn,
    as_messages,
    check_fields,
    check_prompt,
    column,
    text_column,
)
from vcsoup_dist.preferences.other_columns import with_system
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Message, Row
from vcsoup_dist.preferences.values import is_blank, kind_of

PKU_LABELS = {"better": "better_response_id", "safer": "safer_response_id"}
HELPSTEER_MARK = "<extra_id_1>"
HELPSTEER_TURN = re.compile(rf"(?:^|\r?\n){HELPSTEER_MARK}(User|Assistant)\r?\n")
HELPSTEER_ROLES = {"User": "user", "Assistant": "assistant"}
ULTRAFEEDBACK_SCORES = ("overall_score", "fine-grained_score")


@dataclass(frozen=True)
class Rated:
    """An answer and its ratings; None where it has none of that name."""

    prompt: list[Message]
    text: str
    ratings: dict[str, float | None]


def compared(best: Rated, worst: Rated) -> Comparison:
    """Two answers to one prompt, with the ratings of both as columns."""
    found = {f"chosen_{name}": value for name, value in best.ratings.items()}
    found |= {f"rejected_{name}": value for name, value in worst.ratings.items()}
    unrated = frozenset(name for name, value in found.items() if value is None)
    return Comparison(best.prompt, best.text, worst.text, found, unrated)


def has_all(rated: Rated, side: str, columns: Sequence[str]) -> bool:
    """Whether an answer has the ratings that `columns` name of its `side`, chosen or rejected."""
    names = (name.removeprefix(f"{side}_") for name in columns if name.startswith(f"{side}_"))
    return all(rated.ratings.get(name) is not None for name in names)


def from_pku(row: Row, preferred_by: str, columns: Sequence[str]) -> Comparison:
    """The response that is better or safer against the other; raises BadRow.

    A label or severity that neither `preferred_by` nor `columns` name may hold anything.
    """
    prompt = as_messages(column(row, "prompt"))
    used = {preferred_by, *(name.split("_", 1)[-1] for name in columns)}
    label = PKU_LABELS[preferred_by]
    named = _label(row, label)
    if named is None:
        raise MissingColumn(label, row, row)
    answers = []
    for i in (0, 1):
        ratings: dict[str, float | None] = {}
        for name, label in PKU_LABELS.items():
            found = _label(row, label) if name in used else None
            ratings[name] = None if found is None else float(found == i)
        severity = f"response_{i}_severity_level"
        if severity in row:
            wanted = "severity_level" in used and row[severity] is not None
            ratings["severity_level"] = number(row, severity) if wanted else None
        answers.append(Rated(prompt, text_column(row, f"response_{i}"), ratings))
    return compared(answers[named], answers[1 - named])


def _label(row: Row, label: str) -> int | None:
    """Which response a label names, 0 or 1; None without the label; raises BadRow."""
    given = row.get(label)
    if given is None:
        return None
    if given not in (0, 1, "0", "1"):
        raise BadRow(f"`{label}` is neither 0 nor 1")
    return int(given)


def from_ultrafeedback(row: Row, preferred_by: str, columns: Sequence[str]) -> Comparison:
    """The best completion against the worst; raises BadRow or LeftOut.

    A completion without text or without that rating takes no part.
    """
    prompt = as_messages(column(row, "instruction"), "instruction")
    answers = []
    for each in completions(row):
        text, ratings = each.get("response"), ultrafeedback_ratings(each)
        check_fields(each, "a completion")
        if isinstance(text, str) and not is_blank(text) and ratings.get(preferred_by) is not None:
            answers.append(Rated(prompt, text, ratings))
    if len(answers) < 2:
        raise LeftOut("fewer than two rated responses")

    def rating(answer: Rated) -> float:
        return answer.ratings[preferred_by] or 0.0

    best = max(answers, key=lambda each: (rating(each), has_all(each, "chosen", columns)))
    worst = min(answers, key=lambda each: (rating(each), not has_all(each, "rejected", columns)))
    if rating(best) == rating(worst):
        raise LeftOut(f"tie by `{preferred_by}`")
    return compared(best, worst)


def completions(row: Row) -> Sequence[Row]:
    """The answers of a row of UltraFeedback; raises BadRow."""
    found = column(row, "completions")
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise BadRow(f"`completions` is {kind_of(found)}, not a list of responses")
    return found


def ultrafeedback_ratings(completion: Row) -> dict[str, float | None]:
    """Every rating of a completion; what is not a number, such as "N/A", is None."""
    found = {name: completion[name] for name in ULTRAFEEDBACK_SCORES if name in completion}
    annotations = completion.get("annotations")
    for name, note in (annotations if isinstance(annotations, dict) else {}).items():
        if isinstance(note, dict) and "Rating" in note:
            found[name] = note["Rating"]
    return {name: _rating(value) for name, value in found.items()}


def _rating(value: Any) -> float | None:
    try:
        return number({"": float(value) if isinstance(value, str) else value}, "")
    except (ValueError, BadRow):
        return None


def from_helpsteer(row: Row) -> Rated:
    """One rated response; raises BadRow."""
    given = column(row, "prompt")
    prompt = _turns(given) if isinstance(given, str) else as_messages(given)
    prompt = with_system(row, prompt)
    check_prompt(prompt)
    text = text_column(row, "response")
    if is_blank(text):
        raise BadRow("empty response")
    return Rated(prompt, text, {name: _rating(row[name]) for name in helpsteer_ratings(row)})


def helpsteer_ratings(row: Row) -> list[str]:
    """Names of the columns that can be ratings; those without a value are among them."""
    return [
        name
        for name, value in row.items()
        if name not in ("prompt", "response") and (value is None or is_number(value))
    ]


def _turns(text: str) -> list[Message]:
    opening, *parts = HELPSTEER_TURN.split(text)
    turns = [{"role": "user", "content": opening}] if opening or not parts else []
    turns += [
        {"role": HELPSTEER_ROLES[speaker], "content": content}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if any(HELPSTEER_MARK in each["content"] for each in turns):
        raise BadRow(f"`{HELPSTEER_MARK}` that does not begin a turn")
    return turns
