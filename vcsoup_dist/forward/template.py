"""Text to tokens by a model's chat template, once, so that no BOS is doubled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcsoup_dist.errors import UserError

Message = Mapping[str, str]

# Templates that print a date (Llama 3) take it from this; today's would make reference, training
# and evaluation see different prompts.
DATE = "26 Jul 2024"


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens; the answer is `ids[start:]`."""

    ids: list[int]
    start: int

    @property
    def answer_length(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.start


def encode_prompt(tokenizer: Any, prompt: Sequence[Message]) -> list[int]:
    """Tokens up to where the assistant begins to answer."""
    if tokenizer.chat_template is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; give the model "
            "directory a chat_template.jinja"
        )
    return list(
        tokenizer.apply_chat_template(
            list(prompt), add_generation_prompt=True, return_dict=False, date_string=DATE
        )
    )


def encode_answer(
    tokenizer: Any, prompt: Sequence[Message], prompt_ids: Sequence[int], answer: str
) -> Encoded:
    """Tokens of prompt and answer; the answer's are those after the common prefix.

    TRL's rule: where the tokenizer merges across the boundary, the merged token is the answer's.
    """
    message = {"role": "assistant", "content": answer}
    conversation = [*prompt, message]
    ids = list(tokenizer.apply_chat_template(conversation, return_dict=False, date_string=DATE))
    start = 0
    while start < min(len(prompt_ids), len(ids)) and prompt_ids[start] == ids[start]:
        start += 1
    if start == 0:
        # The first token has nothing before it that could predict it.
        raise UserError(
            f"{tokenizer.name_or_path}: the chat template gives prompt and answer no common start"
        )
    return Encoded(ids, start)


def encode_pair(
    tokenizer: Any,
    prompt: Sequence[Message],
    chosen: str,
    rejected: str,
    max_length: int,
    truncate_prompt: bool,
) -> tuple[Encoded, Encoded] | None:
    """Both answers of a preference pair after the same prompt tokens.

    Where one is longer than `max_length`, the prompt's start is cut from both alike. None where
    that is not wanted, or leaves no prompt token before an answer; an answer is never cut.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    pair = tuple(encode_answer(tokenizer, prompt, prompt_ids, text) for text in (chosen, rejected))
    surplus = max(0, *(len(each.ids) - max_length for each in pair))
    if surplus and (not truncate_prompt or surplus >= min(each.start for each in pair)):
        return None
    cut_chosen, cut_rejected = (Encoded(each.ids[surplus:], each.start - surplus) for each in pair)
    return cut_chosen, cut_rejected
