"""Preference pairs in tokens, with their reference log-probs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.template import Encoded, encode_pair
from vcsoup_dist.recipe import Training


@dataclass(frozen=True)
class Example:
    """One preference pair, ready to be packed."""

    id: str
    chosen: Encoded
    rejected: Encoded
    reference_chosen: np.ndarray | None
    """[chosen.answer_length] fp32 log-probs under theta_0; None without a reference."""
    reference_rejected: np.ndarray | None

    @property
    def tokens(self) -> int:
        """Tokens of both sequences: what the pair costs in a forward."""
        return len(self.chosen.ids) + len(self.rejected.ids)


def encode_row(
    tokenizer: Any, row: Mapping[str, Any], training: Training
) -> tuple[Encoded, Encoded] | None:
    """A parquet row (`prompt` messages; `chosen`, `rejected` text or one message) in tokens."""
    return encode_pair(
        tokenizer,
        row["prompt"],
        _text(row["chosen"]),
        _text(row["rejected"]),
        training.max_length,
        training.overlong == "truncate_prompt",
    )


def load_examples(
    file: Path,
    references: Sequence[Path],
    tokenizer: Any,
    training: Training,
    limit: int | None = None,
) -> tuple[list[Example], int]:
    """Examples of a `pairs.parquet` or `heldout.parquet`, and how many pairs were too long.

    Raises UserError where a reference lacks a pair or was computed over other tokens.
    """
    rows = pq.read_table(file).to_pylist()[:limit]
    known = _load_references(references, {row["id"] for row in rows})
    examples, dropped = [], 0
    for row in rows:
        pair = encode_row(tokenizer, row, training)
        if pair is None:
            dropped += 1
            continue
        chosen, rejected = pair
        of_chosen = of_rejected = None
        if references:
            if row["id"] not in known:
                raise UserError(f"{file}: pair {row['id']} has no reference log-probs")
            as_given = (rejected, chosen) if row["turned"] else (chosen, rejected)
            of_tokens, *sides = known[row["id"]]
            if of_tokens != tokens_hash(*as_given):
                raise UserError(
                    f"{file}: the reference log-probs of pair {row['id']} are of other tokens; "
                    "does the chat template depend on the day? remove the run's reference/ folder"
                )
            of_chosen, of_rejected = sides[:: -1 if row["turned"] else 1]
        examples.append(Example(row["id"], chosen, rejected, of_chosen, of_rejected))
    return examples, dropped


def _load_references(
    folders: Iterable[Path], wanted: set[str]
) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    found = {}
    for folder in folders:
        for file in sorted(folder.glob("*.parquet")):
            for row in pq.read_table(file).to_pylist():
                if row["id"] in wanted and row["chosen"] is not None:
                    found[row["id"]] = (
                        row["tokens"],
                        np.asarray(row["chosen"], dtype=np.float32),
                        np.asarray(row["rejected"], dtype=np.float32),
                    )
    return found


def tokens_hash(chosen: Encoded, rejected: Encoded) -> str:
    """Hash of a pair's token ids and of where its answers begin."""
    content = json.dumps([chosen.ids, chosen.start, rejected.ids, rejected.start])
    return xxhash.xxh3_128_hexdigest(content.encode())[:16]


def _text(answer: str | Sequence[Mapping[str, str]]) -> str:
    return answer if isinstance(answer, str) else answer[-1]["content"]
