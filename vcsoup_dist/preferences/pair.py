"""The canonical preference pair, and what is said of rows that become none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring as quoted
from typing import Any

import xxhash

Message = dict[str, str]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, of which the first is preferred."""

    id: str
    """16 hex digits: hash of prompt, chosen and rejected."""
    prompt: list[Message]
    """Messages {role, content}; the last is the user's."""
    chosen: str
    rejected: str
    columns: dict[str, float] = field(default_factory=dict)
    """Scores that the data carries, by column name."""


class BadRow(Exception):
    """A row that cannot be used; `reason` is one of few, so that they can be counted."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.text = text


class LeftOut(Exception):
    """A sound row that makes no pair, such as a tie; `reason` is one of few."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def pair_id(prompt: Sequence[Message], chosen: str, rejected: str) -> str:
    """First 16 hex digits of the xxh3_128 of the pair's canonical JSON; raises BadRow."""
    return _hash(
        f'{{"chosen":{quoted(chosen)},"prompt":{_canonical(prompt)},"rejected":{quoted(rejected)}}}'
    )


def answers_id(prompt: Sequence[Message], one: str, other: str) -> str:
    """16 hex digits that name two answers to a prompt, whichever is preferred; raises BadRow."""
    answers = ",".join(map(quoted, sorted((one, other))))
    return _hash(f'{{"answers":[{answers}],"prompt":{_canonical(prompt)}}}')


def prompt_id(prompt: Sequence[Message]) -> str:
    """16 hex digits that name a prompt in pairs and in answers alike; raises BadRow."""
    messages = (f"[{quoted(each['role'])}, {quoted(each['content'])}]" for each in prompt)
    return _hash(f"[{', '.join(messages)}]")


def split_hash(prompt: Sequence[Message]) -> int:
    """64 bits by which prompts are held out; raises BadRow.

    Not `prompt_id`, of which evaluation takes the lowest: the two choices are independent. Recipes
    hold out by this hash, so changing it changes their training data.
    """
    return int(_hash(_canonical(prompt)), 16)


def _canonical(prompt: Sequence[Message]) -> str:
    """JSON without blanks, the keys sorted; written out here for speed."""
    messages = (
        f'{{"content":{quoted(each["content"])},"role":{quoted(each["role"])}}}' for each in prompt
    )
    return f"[{','.join(messages)}]"


def _hash(canonical: str) -> str:
    try:
        return xxhash.xxh3_128_hexdigest(canonical.encode())[:16]
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell
        raise BadRow("not UTF-8") from error
