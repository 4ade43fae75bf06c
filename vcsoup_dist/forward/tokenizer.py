"""Loading a model's tokenizer."""

from __future__ import annotations

from typing import Any

from vcsoup_dist.errors import UserError, reason_of


def open_tokenizer(source: str, revision: str | None) -> Any:
    """The tokenizer of a base; UserError where it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    except Exception as error:  # missing files, or those that its library refuses
        raise UserError(f"{source}: its tokenizer cannot be loaded: {reason_of(error)}") from error
    # Long texts are dropped or cut here, so this warning would be wrong.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer
