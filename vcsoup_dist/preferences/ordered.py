"""Formats whose rows say themselves which answer is chosen.

trl   prompt, chosen, rejected as strings or message lists; without a prompt, chosen and
      rejected are whole message lists that differ in their last message (TRL's implicit prompt)
hh    chosen and rejected are whole dialogues as text, `\\n\\nHuman:` and `\\n\\nAssistant:`
      (Anthropic's HH-RLHF)
"""

from __future__ import annotations

import re

from vcsoup_dist.preferences.comparison import Comparison
from vcsoup_dist.preferences.messages import as_messages, column, messages, text_column
from vcsoup_dist.preferences.pair import BadRow, Message, Row

HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def from_trl(row: Row) -> Comparison:
    """A row in one of TRL's preference formats; raises BadRow."""
    chosen, rejected = column(row, "chosen"), column(row, "rejected")
    prompt = row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise BadRow("missing column `prompt`")
        return Comparison(as_messages(prompt), chosen, rejected, row)
    chosen, rejected = messages(chosen), messages(rejected)
    if isinstance(prompt, list):
        given = messages(prompt)
        chosen, rejected = _without(given, chosen), _without(given, rejected)
    elif isinstance(prompt, str) and len(chosen) == len(rejected) == 1:
        given = as_messages(prompt)
    else:
        # TRL's implicit prompt; a `prompt` string beside whole dialogues repeats their start.
        given = chosen[:-1]
        if rejected[:-1] != given:
            raise BadRow("chosen and rejected differ before the last answer")
        chosen, rejected = chosen[-1:], rejected[-1:]
    if [each["role"] for each in (*chosen, *rejected)] != ["assistant", "assistant"]:
        raise BadRow("wrong roles")
    return Comparison(given, chosen[0]["content"], rejected[0]["content"], row)


def from_hh(row: Row) -> Comparison:
    """A row of whole dialogues; the prompt is all up to the last answer; raises BadRow."""
    turns = []
    for name in ("chosen", "rejected"):
        opening, *parts = HH_TURN.split(text_column(row, name))
        if opening.strip() or not parts:
            raise BadRow(f"`{name}` is no dialogue that begins with \\n\\nHuman:")
        speakers, contents = parts[::2], parts[1::2]
        turns.append(
            [
                {"role": HH_ROLES[speaker], "content": content.strip()}
                for speaker, content in zip(speakers, contents, strict=True)
            ]
        )
    chosen, rejected = turns
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise BadRow("wrong roles")
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("chosen and rejected differ before the last answer")
    return Comparison(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], row)


def _without(prompt: list[Message], dialogue: list[Message]) -> list[Message]:
    """The messages after `prompt`, where a dialogue repeats it."""
    return dialogue[len(prompt) :] if dialogue[: len(prompt)] == prompt else dialogue
