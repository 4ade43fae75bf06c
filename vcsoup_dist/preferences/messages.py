"""Messages {role, content} as public data gives them, and what a prompt must look like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vcsoup_dist.preferences.pair import BadRow, Message, Row


class MissingColumn(BadRow):
    """A row that has nothing under `name`."""

    def __init__(self, name: str, row: Row, there: Iterable[str]) -> None:
        super().__init__(f"missing column `{name}`")
        self.name = name
        self.absent = name not in row
        """False where it has the column, but no value."""
        self.there = tuple(there)
        """Names that it might have been."""


def column(row: Row, name: str) -> Any:
    """What a row has under `name`; raises MissingColumn where that is nothing."""
    if row.get(name) is None:
        raise MissingColumn(name, row, row)
    return row[name]


def text_column(row: Row, name: str) -> str:
    """The text that a row has under `name`; raises BadRow."""
    text = column(row, name)
    if not isinstance(text, str):
        raise BadRow(f"`{name}` is no text")
    return text


def as_messages(prompt: Any) -> list[Message]:
    """A prompt that is a text or a message list; raises BadRow."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else messages(prompt)


def messages(given: Any) -> list[Message]:
    """A non-empty list of {role, content}; other keys of a message are left out; raises BadRow."""
    if not isinstance(given, list) or not given:
        raise BadRow("no text and no message list")
    found = []
    for each in given:
        if not isinstance(each, Mapping) or not isinstance(each.get("role"), str):
            raise BadRow("message without a role")
        if not isinstance(each.get("content"), str):
            raise BadRow("message whose content is no text")
        found.append({"role": each["role"], "content": each["content"]})
    return found


def check_prompt(prompt: Sequence[Message]) -> None:
    """An optional system message, then user and assistant in turn, the user last, or BadRow."""
    roles = [each["role"] for each in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    wanted = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if len(turns) % 2 == 0 or turns != wanted:
        raise BadRow("wrong roles")
    if not prompt[-1]["content"].strip():
        raise BadRow("empty prompt")
