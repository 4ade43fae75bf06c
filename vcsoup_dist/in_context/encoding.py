"""Answers in tokens, each after a prompt that says its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answer_text import kept_answer
from vcsoup_dist.forward.template import (
    Encoded,
    Message,
    RefusedByTemplate,
    Unusable,
    encode_one,
    encode_prompt,
)
from vcsoup_dist.in_context.prompts import added_scores
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.recipe import Training
from vcsoup_dist.records.in_context import Place, ScorePrompt
from vcsoup_dist.records.tokens import PairTokens
from vcsoup_dist.tokens.pair_tokens import tokens_or_reason


def scored_pair(
    tokenizer: Any, pair: Pair, scores: NDArray[np.float64], how: ScorePrompt, training: Training
) -> PairTokens:
    """Both answers of a pair, each after the prompt with its own scores; scores [2, N].

    Unusable as a whole where one answer is; too long also where the scores would be cut.
    """

    def encode() -> tuple[Encoded, Encoded] | Unusable:
        sides = []
        for answer, own in zip((pair.chosen, pair.rejected), scores.tolist(), strict=True):
            added = added_scores(how, own)
            side = _encode(tokenizer, added.to(pair.prompt), answer, training)
            if isinstance(side, Unusable):
                return side
            if not kept_answer(tokenizer, side.ids[: side.start], 0, added.text):
                if len(side.ids) >= training.max_length:
                    return Unusable.TOO_LONG
                raise UserError(_dropped(tokenizer, how.place))
            sides.append(side)
        return sides[0], sides[1]

    return tokens_or_reason(tokenizer, encode)


def _encode(
    tokenizer: Any, prompt: Sequence[Message], answer: str, training: Training
) -> Encoded | Unusable:
    truncate = training.overlong == "truncate_prompt"
    return encode_one(tokenizer, prompt, answer, training.max_length, truncate)


def check_arrival(tokenizer: Any, how: ScorePrompt, prompt: Sequence[Message], method: str) -> None:
    """UserError where prompts that ask for different scores have the same tokens.

    prompt: one to try it with. method: the instance's name in the recipe.
    """
    zeros = [0.0] * len(how.values)
    asked = _tokens(tokenizer, how, zeros, prompt, method)
    for i, value in enumerate(how.values):
        other = [*zeros[:i], 1.0, *zeros[i + 1 :]]
        if _tokens(tokenizer, how, other, prompt, method) != asked:
            continue
        if not kept_answer(tokenizer, asked, 0, added_scores(how, zeros).text):
            raise UserError(f"methods.{method}.place: {_dropped(tokenizer, how.place)}")
        raise UserError(
            f"methods.{method}: {tokenizer.name_or_path}: its tokens are the same for the scores "
            f"0.0 and 1.0 of `{value}`, so that no prompt could ask for one; take another model"
        )


def _tokens(
    tokenizer: Any,
    how: ScorePrompt,
    scores: Sequence[float],
    prompt: Sequence[Message],
    method: str,
) -> list[int]:
    try:
        return encode_prompt(tokenizer, added_scores(how, scores).to(prompt))
    except RefusedByTemplate as error:
        if how.place == "end":
            raise
        raise UserError(f"methods.{method}.place: {error}; set it to `end`") from error


def _dropped(tokenizer: Any, place: Place) -> str:
    fix = "set place to `end`" if place == "system" else "give the model another one"
    return f"{tokenizer.name_or_path}: its chat template drops the scores from the prompt; {fix}"
