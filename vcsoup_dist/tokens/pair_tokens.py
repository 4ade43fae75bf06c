"""A preference pair in tokens, or the reason why it is unusable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.template import Unusable, encode_pair
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
    try:
        pair = encode_pair(
            tokenizer,
            prompt,
            chosen,
            rejected,
            training.max_length,
            training.overlong == "truncate_prompt",
        )
    except UserError as error:  # RefusedByTemplate too
        return PairTokens(Unusable.REFUSED, str(error))
    if pair is Unusable.CUT:
        return PairTokens(
            pair,
            f"{tokenizer.name_or_path}: its chat template drops part of an answer (such as all up "
            "to `</think>`); give the model directory another chat_template.jinja",
        )
    return PairTokens(pair)
