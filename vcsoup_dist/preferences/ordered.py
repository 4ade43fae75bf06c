"""Formats whose rows say themselves which answer is chosen.

trl   prompt, chosen, rejected as strings or message lists; without a prompt, chosen and
      rejected are whole message lists that differ in their last message (TRL's implicit prompt)
hh    chosen and rejected are whole dialogues as text, `\\n\\nHuman:` and `\\n\\nAssistant:`
      (Anthropic's HH-RLHF)

HH-RLHF is also published with such a text as `prompt`, with whole dialogues or the answers alone.
A prompt given with whole dialogues must be their start.
"""

from __future__ import annotations

import re
from typing import Any

from vcsoup_dist.preferences.canonical import Comparison
from vcsoup_dist.preferences.messages import (
    as_messages,
    column,
    text_column,
    text_or_messages,
    wrong_roles,
)
from vcsoup_dist.preferences.pair import BadRow, Message, Row
from vcsoup_dist.preferences.values import is_blank, is_empty

HH_START = "\n\nHuman:"
HH_END = "\n\nAssistant:"
HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
REPEATED = 32
"""Characters of a prompt from which on two answers that both begin with it do not do so by chance:
they are whole texts, prompt included."""


def from_trl(row: Row) -> Comparison:
    """A row in one of TRL's preference formats; raises BadRow."""
    chosen = text_or_messages(column(row, "chosen"), "chosen")
    rejected = text_or_messages(column(row, "rejected"), "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _from_texts(row, chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("one answer is a text, the other is not")
    given, answers = _last_apart(chosen, rejected)
    if given:
        _check_start(row, given)
    return Comparison(given or _prompt(row), *answers, row)


def from_hh(row: Row) -> Comparison:
    """A row of whole dialogues; the prompt is all up to the last answer; raises BadRow.

    Where their `prompt` is a transcript and the answers are not dialogues, the row is read
    as TRL's.
    """
    texts = {name: text_column(row, name) for name in ("chosen", "rejected")}
    if is_transcript(row.get("prompt")) and not any(map(_is_dialogue, texts.values())):
        return from_trl(row)
    for name, text in texts.items():
        if not _is_dialogue(text):
            raise BadRow(f"`{name}` is not a dialogue that begins with \\n\\nHuman:")
    chosen, rejected = map(_turns, texts.values())
    given, answers = _last_apart(chosen, rejected)
    _check_start(row, given)
    return Comparison(given, *answers, row)


def is_transcript(prompt: Any) -> bool:
    """Whether a prompt is a dialogue as HH-RLHF writes it, up to the answer."""
    return isinstance(prompt, str) and (
        prompt.startswith(HH_START)
        or (prompt.lstrip().startswith("Human:") and prompt.rstrip().endswith(HH_END))
    )


def _from_texts(row: Row, chosen: str, rejected: str) -> Comparison:
    prompt = column(row, "prompt")
    if chosen.startswith(HH_START) and rejected.startswith(HH_START):
        raise BadRow("both answers are whole dialogues (\\n\\nHuman: …), as format `hh` has them")
    if is_transcript(prompt):
        chosen, rejected = chosen.strip(), rejected.strip()
    _check_answers(prompt, chosen, rejected)
    return Comparison(_prompt(row), chosen, rejected, row)


def _prompt(row: Row) -> list[Message]:
    """A prompt's messages; raises BadRow. The mark of the answer to come is not a turn."""
    given = column(row, "prompt")
    if not is_transcript(given):
        return as_messages(given)
    turns = _turns(given)
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _last_apart(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], tuple[str, str]]:
    """The start that two dialogues share, and their answers; raises BadRow."""
    for dialogue, name in ((chosen, "chosen"), (rejected, "rejected")):
        if dialogue[-1]["role"] != "assistant":
            raise wrong_roles(
                [each["role"] for each in dialogue], f"`{name}` ends with the assistant"
            )
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("chosen and rejected differ before the last answer")
    return chosen[:-1], (chosen[-1]["content"], rejected[-1]["content"])


def _check_start(row: Row, given: list[Message]) -> None:
    """Raises BadRow where the row's prompt is not the start of its dialogues.

    Of several turns a text may be the first question or the last.
    """
    written = row.get("prompt")
    if is_blank(written) if isinstance(written, str) else is_empty(written):
        return
    prompt = _prompt(row)
    text = isinstance(row["prompt"], str) and not is_transcript(row["prompt"])
    turns = [each for each in given if each["role"] != "system"] if text else given
    starts = [turns[:1], turns[-1:]] if text else [turns]
    if not any(_same(prompt, start) for start in starts):
        raise BadRow("`prompt` is not the start of the dialogues in `chosen` and `rejected`")


def _same(one: list[Message], other: list[Message]) -> bool:
    """Whether messages are the same but for white space, which copies of a prompt often lose."""
    return len(one) == len(other) and all(
        a["role"] == b["role"] and a["content"].split() == b["content"].split()
        for a, b in zip(one, other, strict=True)
    )


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
