"""Messages {role, content} as public data gives them, and what a prompt must look like."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from vcsoup_dist.preferences.pair import BadRow, Message, Row
from vcsoup_dist.preferences.values import Unread, is_blank, is_empty, is_parts, kind_of

PLAIN = frozenset({"role", "content"})
MEDIA = ("image", "images", "image_url", "audio", "audios", "input_audio", "video", "videos")
FIELDS = (
    "tool_calls", "function_call", "reasoning_content", "reasoning", "reasoning_details",
    "thinking", "documents", "files", "attachments", *MEDIA,
)  # fmt: skip
"""Keys of a message that change what it says; a message with one of them is not read without it."""
TEXT_PARTS = ("text", "input_text", "output_text")
SHOWN_ROLES = 6
AS_TEXT = re.compile(r"""\s*\[?\s*\{\s*["'](?:role|content)["']\s*:""")
"""How messages begin that were written as a text, as JSON or as Python prints them."""
ROLE_AS_TEXT = re.compile(r"""["']role["']\s*:\s*["'](\w+)["']""")
KNOWN_ROLES = frozenset({
    "system", "developer", "user", "assistant", "tool", "function", "ipython", "observation",
    "human", "gpt", "bot", "model", "chatbot", "User", "Assistant", "System", "Human", "prompter",
})  # fmt: skip


class MissingColumn(BadRow):
    """A row that has nothing under `name`."""

    def __init__(self, name: str, row: Row, there: Iterable[str]) -> None:
        self.name = name
        self.absent = name not in row
        """False where it has the column, but no value."""
        super().__init__(f"missing column `{name}`" if self.absent else f"column `{name}` is null")
        self.there = tuple(there)
        """Names that it might have been."""


def column(row: Row, name: str) -> Any:
    """What a row has under `name`; raises MissingColumn where that is nothing, or BadRow."""
    found = row.get(name)
    if found is None:
        raise MissingColumn(name, row, row)
    if isinstance(found, Unread):
        raise BadRow(f"`{name}` is {found.reason}")
    return found


def text_column(row: Row, name: str) -> str:
    """The text that a row has under `name`, typed parts joined; raises BadRow."""
    text = text_or_messages(column(row, name), name)
    if not isinstance(text, str):
        raise BadRow(f"`{name}` is {kind_of(row[name])}, not a text")
    return text


def text_or_messages(given: Any, name: str) -> str | list[Message]:
    """A text, or the messages of a list or of a lone message; raises BadRow.

    A list of typed parts is the text that they hold.
    """
    if isinstance(given, str):
        return given
    if is_parts(given):
        return _joined(given, name)
    return messages([given] if isinstance(given, dict) else given, name)


def as_messages(prompt: Any, name: str = "prompt") -> list[Message]:
    """A prompt that is a text, a message or a list of messages; raises BadRow."""
    found = text_or_messages(prompt, name)
    return [{"role": "user", "content": found}] if isinstance(found, str) else found


def messages(given: Any, name: str = "prompt") -> list[Message]:
    """A non-empty list of {role, content}; raises BadRow.

    Keys of a message that change nothing are left out; those of FIELDS must be empty.
    """
    if not isinstance(given, list) or not given:
        raise BadRow(f"`{name}` is {kind_of(given)}, not a text or a list of messages")
    found = []
    for each in given:
        if not isinstance(each, dict):
            raise BadRow(f"`{name}` is {kind_of(given)}, not a text or a list of messages")
        if each.keys() != PLAIN:
            check_fields(each)
        content = each.get("content")
        if isinstance(content, str) and isinstance(each.get("role"), str):
            found.append({"role": each["role"], "content": content})
        else:
            found.append(_odd_message(each, content))
    return found


def is_messages_as_text(text: str, role: str) -> bool:
    """Whether a text is a list of messages written down, one of them of that role."""
    return (
        AS_TEXT.match(text) is not None
        and text.rstrip().endswith(("]", "}"))
        and role in ROLE_AS_TEXT.findall(text)
    )


def check_fields(message: Row, what: str = "a message") -> None:
    """Raises BadRow where a message says more than its text, such as a tool call."""
    for name in FIELDS:
        if name in message and not is_empty(message[name]):
            raise BadRow(f"{what} has `{name}`, which is not read")


def _odd_message(message: Row, content: Any) -> Message:
    role = message.get("role")
    if not isinstance(role, str):
        if "from" in message and "value" in message:
            raise BadRow("a message has `from` and `value` (ShareGPT), not `role` and `content`")
        raise BadRow("message without a role")
    if is_parts(content):
        return {"role": role, "content": _joined(content, "content")}
    if "content" not in message:
        raise BadRow("message without `content`")
    raise BadRow(f"message whose `content` is {kind_of(content)}, not a text")


def _joined(parts: Sequence[Row], name: str) -> str:
    """The text of typed parts, laid end to end as chat templates do; raises BadRow."""
    texts = []
    for part in parts:
        kind, text = part["type"], part.get("text")
        if kind not in TEXT_PARTS:
            shown = repr(kind)[:40] if isinstance(kind, str) else kind_of(kind)
            raise BadRow(f"`{name}` is a list of parts, one of type {shown}; only text is read")
        if not isinstance(text, str):
            raise BadRow(f"`{name}` is a list of parts, one of whose `text` is {kind_of(text)}")
        check_fields(part, f"a part of `{name}`")
        texts.append(text)
    return "".join(texts)


def check_prompt(prompt: Sequence[Message]) -> None:
    """An optional system message, then user and assistant in turn, the user last, or BadRow."""
    roles = [each["role"] for each in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    wanted = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if len(turns) % 2 == 0 or turns != wanted:
        raise wrong_roles(roles)
    if is_blank(prompt[-1]["content"]):
        raise BadRow("empty prompt")


def wrong_roles(roles: Sequence[str], why: str | None = None) -> BadRow:
    """The reason that names the roles of a prompt, or of a dialogue of which `why` is wrong."""
    shown = [each if each in KNOWN_ROLES else f"`{each[:20]}`" for each in roles[:SHOWN_ROLES]]
    found = ", ".join(shown) + (", …" if len(roles) > SHOWN_ROLES else "")
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if why is not None:
        pass
    elif not roles:
        return BadRow("wrong roles: the prompt has no turn")
    elif any(each not in ("user", "assistant") for each in turns):
        why = "user and assistant take turns, after a system turn at most"
    elif turns[:1] != ["user"]:
        why = "a prompt begins with the user, after a system turn at most"
    elif turns[-1] != "user":
        why = "a prompt ends with the user"
    else:
        why = "user and assistant take turns"
    return BadRow(f"wrong roles: {found}; {why}")
