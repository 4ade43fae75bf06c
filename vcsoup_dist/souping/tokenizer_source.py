"""Whose config and tokenizer a soup gets, and whether those of its policies allow one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.checkpoints.auxiliary_files import CONFIG_NAME
from vcsoup_dist.checkpoints.config_agreement import config_differences
from vcsoup_dist.checkpoints.tokenizer_agreement import (
    has_tokenizer,
    tokenizer_differences,
    vocabulary_differences,
)
from vcsoup_dist.errors import UserError
from vcsoup_dist.json_file import read_json
from vcsoup_dist.progress import log

Named = tuple[str, Path]
"""What messages call a model directory, and where it is."""


def choose_tokenizer_source(
    policies: Sequence[Named], base: Named | None, model: Path | None
) -> Path | None:
    """Whose config and tokenizer the soup gets: the model's, else the first policy's that has them.

    UserError, in one line, for all in which the policies, the base (its vocabulary alone) and the
    model describe models that have no soup. What else differs is logged.
    """
    described = [each for each in policies if (each[1] / CONFIG_NAME).is_file()]
    if model is None:
        complete = [each for each in described if has_tokenizer(each[1])]
        others = [base] if base and (base[1] / CONFIG_NAME).is_file() else []
        candidates = [*complete, *described, *others]
        source = candidates[0] if candidates else None
    else:
        source = (f"--model {model}", model)
    refused = []
    if described:
        first = described[0]
        for other in described[1:]:
            refused += _compared(first, other, source if model is None else None)
        if model is not None and source is not None:
            refused += _fits(first, source)
    with_tokens = [each for each in policies if has_tokenizer(each[1])]
    for other in [each for each in (base, source) if each]:
        if with_tokens and other not in with_tokens:
            found = vocabulary_differences(with_tokens[0][1], other[1])
            refused += _named(with_tokens[0], other, [], found.refused)
    if refused:
        raise UserError(
            "; ".join(dict.fromkeys(refused))
            + ": only policies of one model with one tokenizer can be merged"
        )
    return source[1] if source else None


def _compared(first: Named, other: Named, source: Named | None) -> list[str]:
    """What is refused of two policies; the rest is logged. source: whose files soups get.

    A person who gives a --model has decided on what cannot be known.
    """
    of_config = config_differences(
        read_json(first[1] / CONFIG_NAME), read_json(other[1] / CONFIG_NAME), chosen=source is None
    )
    of_tokens = tokenizer_differences(first[1], other[1])
    noted = [*of_config.noted, *(f"tokenizer: {each}" for each in of_tokens.noted)]
    if noted and source is not None:
        log.warning(
            "policies %s and %s differ in %s: soups get what %s has (--model chooses another)",
            first[0],
            other[0],
            ", ".join(noted),
            source[0],
        )
    return _named(first, other, of_config.refused, of_tokens.refused)


def _fits(first: Named, model: Named) -> list[str]:
    """What is refused of a policy and the model whose config its soup gets."""
    configs = [read_json(each[1] / CONFIG_NAME) for each in (first, model)]
    return _named(first, model, config_differences(*configs, chosen=True).refused)


def _named(
    one: Named, other: Named, of_config: Sequence[str], of_tokens: Sequence[str] = ()
) -> list[str]:
    said = [f"config.json: {', '.join(of_config)}"] if of_config else []
    said += [f"tokenizer: {', '.join(of_tokens)}"] if of_tokens else []
    return [f"{one[0]} and {other[0]} differ in {'; '.join(said)}"] if said else []
