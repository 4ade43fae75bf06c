"""Formats whose answers are rated under several names; `preferred_by` says which one decides.

pku            prompt, response_0, response_1 and which of them is better and which safer, in
               better_response_id and safer_response_id (PKU-SafeRLHF)
ultrafeedback  instruction and completions, each with a response, an overall_score or
               fine-grained_score and annotations that hold a Rating as text (UltraFeedback)
helpsteer      a row is one rated response; rows of one prompt follow one another (HelpSteer,
               HelpSteer2); several user turns are parted by `<extra_id_1>`

The best and the worst answer make the pair, the earliest where ratings are equal. Whatever is rated
becomes two columns of it: chosen_<name> and rejected_<name>.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vcsoup_dist.preferences.comparison import Comparison, is_number, number
from vcsoup_dist.preferences.messages import as_messages, check_prompt, column, text_column
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Message, Row

PKU_LABELS = {"better": "better_response_id", "safer": "safer_response_id"}
HELPSTEER_TURN = re.compile(r"(?:^|\n)<extra_id_1>(User|Assistant)\n")
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


def from_pku(row: Row, preferred_by: str) -> Comparison:
    """The response that is better or safer against the other; raises BadRow."""
    prompt = as_messages(column(row, "prompt"))
    answers = []
    for i in (0, 1):
        ratings: dict[str, float | None] = {
            name: _is_response(row, label, i) for name, label in PKU_LABELS.items()
        }
        severity = f"response_{i}_severity_level"
        if severity in row:
            ratings["severity_level"] = number(row, severity) if row[severity] is not None else None
        answers.append(Rated(prompt, text_column(row, f"response_{i}"), ratings))
    column(row, PKU_LABELS[preferred_by])
    first, second = answers
    return compared(*((first, second) if first.ratings[preferred_by] else (second, first)))


def _is_response(row: Row, label: str, i: int) -> float | None:
    """1 where the label names response i, 0 where the other; None without the label."""
    if row.get(label) is None:
        return None
    if row[label] not in (0, 1):
        raise BadRow(f"`{label}` is neither 0 nor 1")
    return float(row[label] == i)


def from_ultrafeedback(row: Row, preferred_by: str) -> Comparison:
    """The best completion against the worst; raises BadRow or LeftOut.

    A completion without text or without that rating takes no part.
    """
    prompt = as_messages(column(row, "instruction"))
    answers = []
    for each in completions(row):
        text, ratings = each.get("response"), ultrafeedback_ratings(each)
        if isinstance(text, str) and text.strip() and ratings.get(preferred_by) is not None:
            answers.append(Rated(prompt, text, ratings))
    if len(answers) < 2:
        raise LeftOut("fewer than two rated responses")

    def rating(answer: Rated) -> float:
        return answer.ratings[preferred_by] or 0.0

    best, worst = max(answers, key=rating), min(answers, key=rating)
    if rating(best) == rating(worst):
        raise LeftOut(f"tie by `{preferred_by}`")
    return compared(best, worst)


def completions(row: Row) -> Sequence[Row]:
    """The answers of a row of UltraFeedback; raises BadRow."""
    found = column(row, "completions")
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise BadRow("`completions` is no list of responses")
    return found


def ultrafeedback_ratings(completion: Row) -> dict[str, float | None]:
    """Every rating of a completion; what is no number, such as "N/A", is None."""
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
    check_prompt(prompt)
    text = text_column(row, "response")
    if not text.strip():
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
    return turns + [
        {"role": HELPSTEER_ROLES[speaker], "content": content}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
