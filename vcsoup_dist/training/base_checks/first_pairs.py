"""The first pairs of every dataset under the chat template of a base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answer_text import kept_answer
from vcsoup_dist.forward.template import RefusedByTemplate, encode_prompt
from vcsoup_dist.recipe import Training
from vcsoup_dist.tokens.pair_tokens import BY_TEMPLATE, pair_in_tokens

TRIED = 8
"""Pairs of a dataset."""


class Texts(NamedTuple):
    """A preference pair as text."""

    id: str
    prompt: Sequence[Mapping[str, str]]
    chosen: str
    rejected: str


def first_texts(folder: Path) -> list[Texts]:
    """The first pairs of a folder of canonical ones."""
    import pyarrow.parquet as pq

    for file in sorted(folder.glob("train-*.parquet")):
        columns = ["id", "prompt", "chosen", "rejected"]
        for batch in pq.ParquetFile(file).iter_batches(TRIED, columns=columns):
            if batch.num_rows:
                return [Texts(**row) for row in batch.to_pylist()]
    return []


def check_template(
    tokenizer: Any, dataset: str, pairs: Iterable[Texts], training: Training
) -> list[str]:
    """Warnings about the first pairs of a dataset under the chat template.

    UserError, with the template's own reason, where it takes none of them.
    """
    tried = list(islice(pairs, TRIED))
    warnings: list[str] = []
    refused: list[str] = []
    for pair in tried:
        found = pair_in_tokens(tokenizer, pair.prompt, pair.chosen, pair.rejected, training)
        if found.reason is not None and found.pair in BY_TEMPLATE:
            refused.append(f"pair {pair.id}: {found.reason}")
    if tried and len(refused) == len(tried):
        raise UserError(
            f"{dataset}: none of its first {len(tried)} pairs can be trained on; {refused[0]}"
        )
    if refused:
        warnings.append(
            f"{dataset}: {len(refused)} of its first {len(tried)} pairs will be left out; "
            f"{refused[0]}"
        )
    for pair in tried:
        if lost := _lost_turns(tokenizer, pair.prompt):
            warnings.append(
                f"{dataset}: the chat template of {tokenizer.name_or_path} leaves out or changes "
                f"the {lost} turn of pair {pair.id}'s prompt"
            )
            break
    return warnings


def _lost_turns(tokenizer: Any, prompt: Sequence[Mapping[str, str]]) -> str | None:
    """The role of the first turn whose text is not in the prompt's tokens."""
    try:
        ids = encode_prompt(tokenizer, prompt)
    except RefusedByTemplate:  # counted above
        return None
    return next(
        (each["role"] for each in prompt if not kept_answer(tokenizer, ids, 0, each["content"])),
        None,
    )
