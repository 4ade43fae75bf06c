"""Text to tokens by a model's chat template, in one pass, so that no BOS is doubled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vcsoup_dist.errors import UserError, is_stop, reason_of
from vcsoup_dist.forward.answer_text import kept_answer
from vcsoup_dist.forward.packing import Ids
from vcsoup_dist.forward.template_limits import comes_to_an_end

Message = Mapping[str, str]

# Templates that print a date take it from this; today's would make reference, training and
# evaluation see different prompts.
DATE = "26 Jul 2024"

MOST_SPECIAL = 16  # tokens that a template puts around an empty answer


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens; the answer is `ids[start:]`."""

    ids: Ids
    start: int

    @property
    def answer_length(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.start


class RefusedByTemplate(UserError):
    """A chat template raised at one conversation; the message names the tokenizer."""


def choose_template(tokenizer: Any, name: str | None, key: str) -> None:
    """Let a tokenizer use its chat template `name`, or its only or default one where None.

    key: the recipe's, which gave `name`. UserError with the tokenizer and its templates.
    """
    template, owner = tokenizer.chat_template, tokenizer.name_or_path
    if not isinstance(template, dict):
        if name is not None:
            raise UserError(
                f"{owner}: its chat templates have no names, or it has none; leave out `{key}`"
            )
        return
    known = ", ".join(sorted(map(str, template)))
    if name is None and "default" not in template:
        raise UserError(
            f"{owner}: its tokenizer has several chat templates and none called `default`: "
            f"{known}; choose one with `{key}`"
        )
    if name is not None and name not in template:
        raise UserError(f"{owner}: `{key}`: no chat template `{name}`; its tokenizer has: {known}")
    tokenizer.chat_template = template[name or "default"]


def encode_prompt(tokenizer: Any, prompt: Sequence[Message]) -> list[int]:
    """Tokens up to where the assistant begins to answer.

    Raises RefusedByTemplate for this prompt, and UserError where no prompt can be encoded.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; give the model "
            "directory a chat_template.jinja"
        )
    ids = list(_render(tokenizer, prompt, add_generation_prompt=True))
    if not ids:
        raise RefusedByTemplate(
            f"{tokenizer.name_or_path}: its chat template makes no tokens of a prompt"
        )
    return ids


def encode_answer(
    tokenizer: Any, prompt: Sequence[Message], prompt_ids: Sequence[int], answer: str
) -> Encoded:
    """Tokens of prompt and answer; the answer's are those after the common prefix.

    TRL's rule: where the tokenizer merges across the boundary, the merged token is the answer's.
    """
    message = {"role": "assistant", "content": answer}
    conversation = [*prompt, message]
    ids = list(_render(tokenizer, conversation))
    start = 0
    while start < min(len(prompt_ids), len(ids)) and prompt_ids[start] == ids[start]:
        start += 1
    if start == 0:
        # No token comes before the first that could predict it.
        raise UserError(
            f"{tokenizer.name_or_path}: the chat template gives prompt and answer no common start"
        )
    return Encoded(ids, start)


def _render(tokenizer: Any, messages: Sequence[Message], **options: Any) -> Any:
    """The conversation under the chat template, in tokens unless `tokenize=False`."""
    name = tokenizer.name_or_path
    choose_template(tokenizer, None, "template")
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise UserError(
            f"{name}: its chat template is a {type(template).__name__}, not text; give the model "
            "directory a chat_template.jinja"
        )
    if not comes_to_an_end(template):
        raise UserError(
            f"{name}: its chat template takes too much time or memory for a short conversation, or "
            "never ends; give the model directory another chat_template.jinja"
        )
    if "strftime_now" in template:  # a function for today's date
        template = "{%- macro strftime_now(format) -%}" + DATE + "{%- endmacro -%}" + template
    try:
        return tokenizer.apply_chat_template(
            list(messages), chat_template=template, return_dict=False, date_string=DATE, **options
        )
    except BaseException as error:  # a template is code, and tokenizers may panic
        if is_stop(error):
            raise
        raise RefusedByTemplate(
            f"{name}: its chat template refuses a prompt: {reason_of(error)}"
        ) from error


def render_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The conversation under the chat template as text; raises as `encode_prompt` does."""
    return str(_render(tokenizer, messages, tokenize=False))


class Unusable(StrEnum):
    """Why a pair cannot be trained on."""

    TOO_LONG = "too long"
    EMPTY = "without an answer"
    SAME = "the same on both sides"
    REFUSED = "refused by the chat template"
    CUT = "cut by the chat template"


def encode_pair(
    tokenizer: Any,
    prompt: Sequence[Message],
    chosen: str,
    rejected: str,
    max_length: int,
    truncate_prompt: bool,
) -> tuple[Encoded, Encoded] | Unusable:
    """Both answers of a preference pair after the same prompt tokens.

    Where one is longer than `max_length`, the same part of the prompt's start after a BOS is cut
    from both; without `truncate_prompt`, or where no prompt token would be left before an answer,
    the pair is unusable. No answer is ever cut. An answer of special tokens and white space alone
    counts as empty, one whose tokens lack a part of its text as cut by the template. Raises
    RefusedByTemplate, and UserError where the chat template is not prefix-stable.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    encoded = []
    for answer in (chosen, rejected):
        found = _encode_checked(tokenizer, prompt, prompt_ids, answer)
        if isinstance(found, Unusable):
            return found
        encoded.append(found)
    if encoded[0].ids == encoded[1].ids:
        return Unusable.SAME
    fitting = _cut_to(tokenizer, prompt_ids, encoded, max_length, truncate_prompt)
    return fitting if isinstance(fitting, Unusable) else (fitting[0], fitting[1])


def encode_one(
    tokenizer: Any, prompt: Sequence[Message], answer: str, max_length: int, truncate_prompt: bool
) -> Encoded | Unusable:
    """One answer after its prompt, as `encode_pair` does with two."""
    prompt_ids = encode_prompt(tokenizer, prompt)
    found = _encode_checked(tokenizer, prompt, prompt_ids, answer)
    if isinstance(found, Unusable):
        return found
    fitting = _cut_to(tokenizer, prompt_ids, [found], max_length, truncate_prompt)
    return fitting if isinstance(fitting, Unusable) else fitting[0]


def _encode_checked(
    tokenizer: Any, prompt: Sequence[Message], prompt_ids: Sequence[int], answer: str
) -> Encoded | Unusable:
    """An answer of any length; an `Unusable` where nothing or a part of it arrives in tokens."""
    encoded = encode_answer(tokenizer, prompt, prompt_ids, answer)
    if encoded.start < len(prompt_ids):
        _check_prefix(tokenizer, prompt, answer)
    if _is_empty(tokenizer, encoded):
        return Unusable.EMPTY
    if not kept_answer(tokenizer, encoded.ids, encoded.start, answer):
        return Unusable.CUT
    return encoded


def _cut_to(
    tokenizer: Any,
    prompt_ids: Sequence[int],
    encoded: Sequence[Encoded],
    max_length: int,
    truncate_prompt: bool,
) -> list[Encoded] | Unusable:
    """Answers to one prompt, without as much of its start as the longest needs to fit."""
    surplus = max(0, *(len(each.ids) - max_length for each in encoded))
    first = int(prompt_ids[0] == tokenizer.bos_token_id)
    if surplus and (not truncate_prompt or first + surplus >= min(each.start for each in encoded)):
        return Unusable.TOO_LONG
    return [
        Encoded([*each.ids[:first], *each.ids[first + surplus :]], each.start - surplus)
        for each in encoded
    ]


def _check_prefix(tokenizer: Any, prompt: Sequence[Message], answer: str) -> None:
    """UserError where the prompt's text is not a prefix; a token may merge across the boundary."""
    conversation = [*prompt, {"role": "assistant", "content": answer}]
    asked, whole = (
        _render(tokenizer, messages, tokenize=False, add_generation_prompt=generate)
        for messages, generate in ((list(prompt), True), (conversation, False))
    )
    if not whole.startswith(asked):
        shared = next(
            (i for i, (a, b) in enumerate(zip(asked, whole, strict=False)) if a != b),
            min(len(asked), len(whole)),
        )
        raise UserError(
            f"{tokenizer.name_or_path}: the chat template is not prefix-stable: with an answer the "
            f"prompt reads {whole[shared : shared + 40]!r} where without it it reads "
            f"{asked[shared : shared + 40]!r}, so where the answer begins is not defined; change "
            "the template"
        )


def _is_empty(tokenizer: Any, encoded: Encoded) -> bool:
    if encoded.answer_length > MOST_SPECIAL:
        return False
    text = tokenizer.decode(list(encoded.ids[encoded.start :]), skip_special_tokens=True)
    # Templates of reasoning models add these to an empty answer.
    return not text.replace("<think>", "").replace("</think>", "").strip()
