"""Formats whose rows say themselves which answer is chosen.

trl   prompt, chosen, rejected as strings or message lists; without a prompt, chosen and
      rejected are whole message lists that differ in their last message (TRL's implicit prompt)
hh    chosen and rejected are whole dialogues as text, `\\n\\nHuman:` and `\\n\\nAssistant:`
      (Anthropic's HH-RLHF)

HH-RLHF is also published with such a text as `prompt`, beside whole dialogues or the answers alone.
"""

from __future__ import annotations

import re
from typing import Any

from vcsoup_dist.preferences.canonical import Comparison
from vcsoup_dist.preferences.messages import (
    MissingColumn,
    as_messages,
    column,
    messages,
    text_column,
)
from vcsoup_dist.preferences.pair import BadRow, Message, Row

HH_START = "\n\nHuman:"
HH_END = "\n\nAssistant:"
HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
REPEATED = 32
"""Characters of a prompt from which on two answers that both begin with it do not do so by chance:
they are whole texts, prompt included."""


def from_trl(row: Row) -> Comparison:
    """A row in one of TRL's preference formats; raises BadRow."""
    chosen, rejected = column(row, "chosen"), column(row, "rejected")
    prompt = row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise MissingColumn("prompt", row, row)
        if is_transcript(prompt):
            chosen, rejected = chosen.strip(), rejected.strip()
        _check_answers(prompt, chosen, rejected)
        return Comparison(_prompt(prompt), chosen, rejected, row)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("one answer is a text, the other is not")
    chosen, rejected = messages(chosen), messages(rejected)
    if isinstance(prompt, list):
        given = messages(prompt)
        chosen, rejected = _without(given, chosen), _without(given, rejected)
    elif isinstance(prompt, str) and len(chosen) == len(rejected) == 1:
        given = _prompt(prompt)
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
    """A row of whole dialogues; the prompt is all up to the last answer; raises BadRow.

    A `prompt` beside them repeats their start. Where it is a transcript and the answers are no
    dialogues, the row is read as TRL's.
    """
    texts = {name: text_column(row, name) for name in ("chosen", "rejected")}
    if is_transcript(row.get("prompt")) and not any(map(_is_dialogue, texts.values())):
        return from_trl(row)
    for name, text in texts.items():
        if not _is_dialogue(text):
            raise BadRow(f"`{name}` is no dialogue that begins with \\n\\nHuman:")
    chosen, rejected = map(_turns, texts.values())
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise BadRow("wrong roles")
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("chosen and rejected differ before the last answer")
    return Comparison(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], row)


def is_transcript(prompt: Any) -> bool:
    """Whether a prompt is a dialogue as HH-RLHF writes it, up to the answer."""
    return isinstance(prompt, str) and (
        prompt.startswith(HH_START)
        or (prompt.lstrip().startswith("Human:") and prompt.rstrip().endswith(HH_END))
    )


def _prompt(given: Any) -> list[Message]:
    """A prompt's messages; raises BadRow. The mark of the answer to come is no turn."""
    if not is_transcript(given):
        return as_messages(given)
    turns = _turns(given)
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _check_answers(prompt: Any, chosen: str, rejected: str) -> None:
    """Answers that repeat their prompt would be trained on with it; raises BadRow.

    They are not cut: nobody knows whether what follows is all of the answer.
    """
    if not isinstance(prompt, str) or (len(prompt) < REPEATED and not is_transcript(prompt)):
        return
    text = prompt.strip()
    if text and all(answer.lstrip().startswith(text) for answer in (chosen, rejected)):
        raise BadRow("both answers begin with the whole prompt")


def _is_dialogue(text: str) -> bool:
    return HH_TURN.match(text) is not None


def _turns(text: str) -> list[Message]:
    """The turns of a dialogue; at least one."""
    _, *parts = HH_TURN.split(text)
    return [
        {"role": HH_ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _without(prompt: list[Message], dialogue: list[Message]) -> list[Message]:
    """The messages after `prompt`, where a dialogue repeats it."""
    return dialogue[len(prompt) :] if dialogue[: len(prompt)] == prompt else dialogue
