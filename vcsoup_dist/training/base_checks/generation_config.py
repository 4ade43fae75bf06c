"""The generation config of a base: how policies sample, and where their answers end."""

from __future__ import annotations

from typing import Any

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.forward.end_tokens import configured_ends, settle_sampling, template_end
from vcsoup_dist.forward.template import RefusedByTemplate


def open_generation_config(source: str, revision: str | None, config: Any) -> tuple[Any, list[str]]:
    """The generation config of a base, or the one that its config implies, and warnings.

    UserError where transformers would not save it with a policy.
    """
    from transformers import GenerationConfig
    from transformers.utils import cached_file

    name = "generation_config.json"
    try:
        file = cached_file(
            source, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        if file is None:
            return GenerationConfig.from_model_config(config), []
        found = GenerationConfig.from_pretrained(source, revision=revision)
        sampling = settle_sampling(found)
    except Exception as error:  # not JSON, or contradictory values
        raise UserError(f"{source}: its {name} is wrong: {reason_of(error)}") from error
    ends = found.eos_token_id
    if not all(type(each) is int for each in (ends if isinstance(ends, list) else [ends or 0])):
        raise UserError(f"{source}: eos_token_id in its {name} is {ends!r}, not the ids of tokens")
    warning = f"{source}: its {name} has {sampling}; policies will have do_sample: true"
    return found, [warning] if sampling else []


def end_warnings(source: str, tokenizer: Any, generation_config: Any) -> list[str]:
    """Warnings where policies cannot learn to end answers, or stop where the base does not."""
    try:
        end = template_end(tokenizer)
    except RefusedByTemplate:  # reported where the pairs are read
        return []
    if end is None:
        return [
            f"{source}: its chat template ends an answer with no special token, so policies cannot "
            "learn when to stop"
        ]
    known = configured_ends(generation_config)
    if end in known:
        return []
    stops = ", ".join(_named(tokenizer, each) for each in known) or "nothing"
    return [
        f"{source}: its chat template ends an answer with {_named(tokenizer, end)}, its generation "
        f"config stops at {stops}; policies will stop at all of them"
    ]


def _named(tokenizer: Any, token: int) -> str:
    name = tokenizer.convert_ids_to_tokens(token) if token >= 0 else None
    return f"{token} ({name!r})" if name is not None else f"{token} (no token)"
