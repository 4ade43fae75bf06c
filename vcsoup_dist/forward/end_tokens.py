"""How answers end and are sampled: end tokens of template, tokenizer and generation config."""

from __future__ import annotations

from typing import Any

from vcsoup_dist.forward.template import RefusedByTemplate, render_text

ANSWER = "vcsoup"
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def end_tokens(tokenizer: Any, generation_config: Any) -> list[int]:
    """Every token at which generation stops, each once, the generation config's first."""
    try:
        template = template_end(tokenizer)
    except RefusedByTemplate:  # reported where the pairs are read
        template = None
    found = [*configured_ends(generation_config), tokenizer.eos_token_id, template]
    return list(dict.fromkeys(token for token in found if token is not None))


def configured_ends(generation_config: Any) -> list[int]:
    """The end tokens of a generation config: none, one or several."""
    ends = getattr(generation_config, "eos_token_id", None)
    return list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]


def settle_sampling(generation_config: Any) -> str | None:
    """Set `do_sample` where sampling values are given without it; returns the first such value.

    transformers reads such a generation config, as some public models have it, and refuses to save
    it. ValueError where it contradicts itself, as by `do_sample: false`.
    """
    try:
        generation_config.validate(strict=True)
        return None
    except ValueError:
        if generation_config.do_sample is not None:
            raise
        generation_config.do_sample = True
    generation_config.validate(strict=True)
    kept = ((name, getattr(generation_config, name, None)) for name in SAMPLING)
    return next(f"{name}: {value} without do_sample" for name, value in kept if value is not None)


def template_end(tokenizer: Any) -> int | None:
    """The token by which the chat template ends an assistant's turn; None where none does.

    The first special token after the answer: white space and a second token may follow. Raises
    RefusedByTemplate where the template refuses a plain question and answer.
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
