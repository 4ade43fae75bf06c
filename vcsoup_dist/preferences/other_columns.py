"""Other columns that change a pair's meaning: a system prompt is read, others are warned of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vcsoup_dist.preferences.messages import MEDIA
from vcsoup_dist.preferences.pair import BadRow, Message, Row
from vcsoup_dist.preferences.values import is_blank, is_empty, kind_of

SYSTEM = ("system", "system_prompt", "system_message")
NOT_READ = frozenset({
    "input", "instruction", "history", "context", "documents", "tools", "functions", "tool_calls",
    "function_call", "reasoning_content", "thinking", "chat_template_kwargs", *MEDIA,
})  # fmt: skip
"""Columns that belong to the conversation where they hold something, and that no format has."""


def with_system(row: Row, prompt: list[Message]) -> list[Message]:
    """The prompt with the row's system column as its first turn; raises BadRow.

    A prompt that has a system turn must have the same one.
    """
    found: dict[str, str] = {}
    for name in SYSTEM:
        value = row.get(name)
        if is_blank(value) if isinstance(value, str) else is_empty(value):
            continue
        if not isinstance(value, str):
            raise BadRow(f"`{name}` is {kind_of(value)}, not a text")
        found[name] = value
    if not found:
        return prompt
    name, text = next(iter(found.items()))
    for other in found:
        if found[other].strip() != text.strip():
            raise BadRow(f"`{name}` and `{other}` differ")
    if prompt and prompt[0]["role"] == "system":
        if prompt[0]["content"].strip() != text.strip():
            raise BadRow(f"`{name}` differs from the system turn of the prompt")
        return prompt
    return [{"role": "system", "content": text}, *prompt]


def not_read(tally: Counter[str]) -> str | None:
    """The warning that names the columns that were counted, or None where there are none."""
    found = {name: count for name, count in sorted(tally.items()) if name in NOT_READ}
    if not found:
        return None
    named = ", ".join(f"`{name}` ({count} rows)" for name, count in found.items())
    return (
        f"columns that are not read, though the conversation may need them: {named}; write them "
        "into `prompt`, or remove them"
    )


def count_not_read(row: Row, prompt: Iterable[Message], tally: Counter[str]) -> None:
    """Count under their names the columns of NOT_READ that say what the prompt does not."""
    for name in row.keys() & NOT_READ:
        value = row[name]
        if is_empty(value):
            continue
        if isinstance(value, str) and any(value.strip() in each["content"] for each in prompt):
            continue
        tally[name] += 1
