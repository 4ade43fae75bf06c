"""A prompt and a response as the tokens that a reward model was trained on.

Truncation cuts the prompt, at its start or its end. Where the response alone is too long its start
goes too, and the special tokens around both stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vcsoup_dist.errors import UserError, is_stop, reason_of
from vcsoup_dist.forward.answer_text import kept_answer
from vcsoup_dist.forward.packing import common_prefix
from vcsoup_dist.forward.template import RefusedByTemplate, encode_answer, encode_prompt
from vcsoup_dist.preferences.pair import Message
from vcsoup_dist.recipe import ClassifierReward

MARKERS = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
Truncate = Literal["start", "end"]
SLOT = re.compile(r"(\{prompt\}|\{response\})")


@dataclass(frozen=True)
class RewardText:
    """Tokens of one text, and which of them may be cut."""

    ids: list[int]
    prompt: range
    response: range
    types: list[int] | None = None
    """token_type_ids, where the tokenizer gives them."""
    truncated: bool = False
    response_truncated: bool = False
    dropped: bool = False
    """Whether the whole text's tokens lack a part of the response."""

    @property
    def key(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Equal for texts that a model cannot tell apart."""
        return tuple(self.ids), None if self.types is None else tuple(self.types)


def prompt_text(prompt: Sequence[Message]) -> str:
    """A prompt as plain text: its only message, or a dialogue whose first marker is left out.

    So a template `\\n\\nHuman: {prompt}\\n\\nAssistant: {response}` is right for one turn and many.
    A system message stands above the first question, as chat templates put it that have no other
    place for it: dialogues of that kind know two speakers alone.
    """
    system = "".join(f"{each['content']}\n\n" for each in prompt if each["role"] == "system")
    turns = [each for each in prompt if each["role"] != "system"]
    dialogue = "".join(MARKERS[each["role"]] + each["content"] for each in turns)
    return system + dialogue.removeprefix(MARKERS["user"])


def encode_text(
    tokenizer: Any,
    form: str,
    prompt: Sequence[Message],
    response: str,
    max_length: int | None,
    truncate: Truncate = "start",
) -> RewardText:
    """Tokens of prompt and response in a recipe's `text` form, at most `max_length` of them.

    `truncate`: the end of the prompt that is cut. Raises UserError naming the tokenizer.
    """
    if form == "chat_template":
        text = _chat(tokenizer, prompt, response)
    elif not tokenizer.is_fast:
        raise UserError(
            f"{tokenizer.name_or_path}: `text: {form}` needs a fast tokenizer (tokenizer.json)"
        )
    elif form == "pair":
        text = _segments(tokenizer(prompt_text(prompt), response), prompt_segment=0)
    elif form == "response":
        text = _segments(tokenizer(response), prompt_segment=None)
    else:
        text = _filled(tokenizer, form, prompt_text(prompt), response)
    if not kept_answer(tokenizer, text.ids, text.response.start, response):
        text = replace(text, dropped=True)
    if max_length is None or len(text.ids) <= max_length:
        return text
    if form == "chat_template":  # only now, since it takes time
        text = _without_closing_marks(tokenizer, text)
    return cut(text, max_length, truncate)


def text_or_reason(
    tokenizer: Any,
    reward: ClassifierReward,
    prompt: Sequence[Message],
    response: str,
    max_length: int | None,
) -> RewardText | str:
    """Tokens of prompt and response as a reward reads them, or why there are none."""
    try:
        text = encode_text(tokenizer, reward.text, prompt, response, max_length, reward.truncate)
        return text if text.ids else "it has no tokens"
    except BaseException as error:  # a template is code, and tokenizers may panic
        if is_stop(error):
            raise
        return str(error) if isinstance(error, UserError) else reason_of(error)


def cut(text: RewardText, max_length: int, truncate: Truncate = "start") -> RewardText:
    """Leave out tokens until `max_length` remain: the prompt's, then the response's first."""
    surplus = len(text.ids) - max_length
    if surplus <= 0:
        return text
    prompt = text.prompt if truncate == "start" else reversed(text.prompt)
    left_out = set([*prompt, *text.response][:surplus])
    # Where markers alone are longer than that, only the end can stay.
    kept = [i for i in range(len(text.ids)) if i not in left_out][-max_length:]
    return replace(
        text,
        ids=[text.ids[i] for i in kept],
        types=text.types and [text.types[i] for i in kept],
        truncated=True,
        response_truncated=surplus > len(text.prompt),
    )


def _chat(tokenizer: Any, prompt: Sequence[Message], response: str) -> RewardText:
    encoded = encode_answer(tokenizer, prompt, encode_prompt(tokenizer, prompt), response)
    first = 1 if encoded.ids[0] == tokenizer.bos_token_id else 0
    return RewardText(
        list(encoded.ids), range(first, encoded.start), range(encoded.start, len(encoded.ids))
    )


def _without_closing_marks(tokenizer: Any, text: RewardText) -> RewardText:
    """The same text; what the template puts between prompt and response is neither's to cut."""
    prompts = [[{"role": "user", "content": content}] for content in ("", "x")]
    try:
        first, second = (encode_prompt(tokenizer, prompt) for prompt in prompts)
    except RefusedByTemplate:  # such as of an empty turn: what it puts there is unknown
        return text
    marks = common_prefix(first[::-1], second[::-1])
    prompt = range(text.prompt.start, max(text.prompt.start, text.prompt.stop - marks))
    return replace(text, prompt=prompt)


def _segments(encoded: Any, prompt_segment: int | None) -> RewardText:
    """A text whose segments the tokenizer tells apart; the response is the last of them."""
    owners = encoded.sequence_ids(0)
    response_segment = 0 if prompt_segment is None else 1
    prompt = [i for i, owner in enumerate(owners) if owner == prompt_segment is not None]
    response = [i for i, owner in enumerate(owners) if owner == response_segment]
    return RewardText(
        encoded["input_ids"], _range(prompt), _range(response), encoded.get("token_type_ids")
    )


def _filled(tokenizer: Any, template: str, prompt: str, response: str) -> RewardText:
    """A template with its slots filled; the tokenizer's offsets say which token is whose."""
    text, spans = "", {"{prompt}": (0, 0), "{response}": (0, 0)}
    for part in SLOT.split(template):
        content = {"{prompt}": prompt, "{response}": response}.get(part, part)
        if part in spans:
            spans[part] = (len(text), len(text) + len(content))
        text += content
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    types = encoded.get("token_type_ids")
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:  # the template has its own
        ids, offsets, types = ids[1:], offsets[1:], types and types[1:]

    def tokens_of(span: tuple[int, int]) -> range:
        inside = [i for i, (start, end) in enumerate(offsets) if span[0] <= start < end <= span[1]]
        return _range(inside)

    return RewardText(ids, tokens_of(spans["{prompt}"]), tokens_of(spans["{response}"]), types)


def _range(positions: Sequence[int]) -> range:
    return range(positions[0], positions[-1] + 1) if positions else range(0)
