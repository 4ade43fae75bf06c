"""Whether the recipe's lengths lie within the positions that a base knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Evaluation, Training

STRETCHED = ("linear", "dynamic", "yarn")
"""Rotary scalings whose factor counts from the config's own positions, unless it names others."""


def context_length(config: Any) -> int | None:
    """Positions of a model, with those of a rotary scaling; None where they are not limited."""
    config = config.get_text_config()
    known = getattr(config, "max_position_embeddings", None)
    if not isinstance(known, int) or known < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in rope.values() if isinstance(each, Mapping)] or [rope]
    return max([known, *(_stretched(kind, known) for kind in kinds)])


def _stretched(rope: Mapping[str, Any], known: int) -> int:
    """Positions of one rotary scaling."""
    factor = rope.get("factor")
    if not isinstance(factor, int | float) or not math.isfinite(factor):
        return known
    original = rope.get("original_max_position_embeddings")
    if original is None:
        original = known if rope.get("rope_type") in STRETCHED else 0
    return int(factor * original)


def check_lengths(config: Any, training: Training, evaluation: Evaluation | None) -> None:
    """UserError with all lengths of the recipe that exceed the model's positions."""
    context, name = context_length(config), config.name_or_path
    if context is None:
        return
    faults = []
    if training.max_length > context:
        faults.append(
            f"training.max_length: {training.max_length} is more than the {context} positions of "
            f"{name} by its config.json; set it to {context} or less"
        )
    if evaluation is not None and (fault := _too_long_answers(context, evaluation, name)):
        faults.append(fault)
    if faults:
        raise UserError("; ".join(faults))


def check_answer_lengths(context: int, evaluation: Evaluation, name: str) -> None:
    """UserError where a prompt and its answer together exceed a model's positions."""
    if fault := _too_long_answers(context, evaluation, name):
        raise UserError(fault)


def _too_long_answers(context: int, evaluation: Evaluation, name: str) -> str | None:
    prompt, answer = evaluation.max_prompt_tokens, evaluation.max_new_tokens
    if prompt + answer <= context:
        return None
    fix = "lower one of them"
    if answer < context:
        fix = f"set evaluation.max_prompt_tokens to {context - answer} or less, or lower the other"
    return (
        f"evaluation.max_prompt_tokens: {prompt} and evaluation.max_new_tokens: {answer} are "
        f"together more than the {context} positions of {name} by its config.json; {fix}"
    )
