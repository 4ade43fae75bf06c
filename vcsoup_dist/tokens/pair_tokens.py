"""A preference pair in tokens, or the reason why it is unusable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.template import Encoded, Unusable, encode_pair
from vcsoup_dist.recipe import Training
from vcsoup_dist.records.tokens import PairTokens

BY_TEMPLATE = (Unusable.REFUSED, Unusable.CUT)
"""What another chat template, and not other pairs, would fix."""


def pair_in_tokens(
    tokenizer: Any,
    prompt: Sequence[Mapping[str, str]],
    chosen: str,
    rejected: str,
    training: Training,
) -> PairTokens:
    """One pair as the trainer reads it; an error of the template costs this pair alone."""
    truncate = training.overlong == "truncate_prompt"
    return tokens_or_reason(
        tokenizer,
        lambda: encode_pair(tokenizer, prompt, chosen, rejected, training.max_length, truncate),
    )


def tokens_or_reason(
    tokenizer: Any, encode: Callable[[], tuple[Encoded, Encoded] | Unusable]
) -> PairTokens:
    """What `encode` makes of a pair, with the reason where the template does not take it."""
    try:
        pair = encode()
    except UserError as error:  # RefusedByTemplate too
        return PairTokens(Unusable.REFUSED, str(error))
    if pair is Unusable.CUT:
        return PairTokens(
            pair,
            f"{tokenizer.name_or_path}: its chat template drops part of an answer (such as all up "
            "to `</think>`); give the model directory another chat_template.jinja",
        )
    return PairTokens(pair)
