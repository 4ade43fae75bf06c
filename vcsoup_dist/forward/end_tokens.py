"""The tokens that end an answer: those of the template, the tokenizer and the generation config."""

from __future__ import annotations

from typing import Any

from vcsoup_dist.forward.template import RefusedByTemplate, render_text

ANSWER = "vcsoup"


def end_tokens(tokenizer: Any, generation_config: Any) -> list[int]:
    """Every token at which generation stops, without repeats: the generation config's first."""
    try:
        template = template_end(tokenizer)
    except RefusedByTemplate:  # said where the pairs are read
        template = None
    found = [*configured_ends(generation_config), tokenizer.eos_token_id, template]
    return list(dict.fromkeys(token for token in found if token is not None))


def configured_ends(generation_config: Any) -> list[int]:
    """The end tokens of a generation config, which has one, several or none."""
    ends = getattr(generation_config, "eos_token_id", None)
    return list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]


def template_end(tokenizer: Any) -> int | None:
    """The token by which the chat template ends an assistant's turn; None where none does.

    The first special token after the answer: white space and a second token may follow. Raises
    RefusedByTemplate where the template takes no plain question and answer.
    """
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": ANSWER}]
    _, found, tail = render_text(tokenizer, turns).rpartition(ANSWER)
    if not found:
        return None
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = added | set(tokenizer.all_special_ids)
    return next((int(token) for token in ids if token in special), None)
