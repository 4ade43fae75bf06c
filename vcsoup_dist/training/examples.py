"""Preference pairs in tokens, with their reference log-probs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
import xxhash

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answers import pair_tokens
from vcsoup_dist.forward.template import Encoded, Unusable
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Training
from vcsoup_dist.records.reference import FIX, ReferenceLogps, read_references
from vcsoup_dist.training.distributed import gather_to_all, is_first
from vcsoup_dist.training.job import PolicyTask
from vcsoup_dist.training.objectives import OBJECTIVES
from vcsoup_dist.training.pair_tokens import pair_in_tokens

ROWS = 4096  # texts in memory at a time

NO_ANSWER = Encoded([], 0)


@dataclass(frozen=True)
class Example:
    """One preference pair, ready to be packed."""

    id: str
    chosen: Encoded
    rejected: Encoded
    tokens: int
    """Of both, their common start counted once: the pair's cost in a forward."""
    consistency: float | None = None
    """The cosine that the filter gave the pair."""
    weight: float = 1.0
    """Of its loss."""
    reference_chosen: np.ndarray | None = None
    """[chosen.answer_length] fp32 log-probs under theta_0; None without a reference."""
    reference_rejected: np.ndarray | None = None


@dataclass(frozen=True)
class EncodedRow:
    """A row of a file of pairs in tokens."""

    id: str
    pair: tuple[Encoded, Encoded] | Unusable
    swapped: bool
    """Whether its answers are chosen and rejected the other way round than in the reference."""
    consistency: float | None
    reason: str | None = None
    """Why the chat template refuses the pair."""


@dataclass(frozen=True)
class PolicyPairs:
    """The pairs of one policy."""

    train: list[Example]
    heldout: list[Example]
    left_out: Counter[str]
    """Reason -> training pairs that are unusable."""


def load_pairs(tokenizer: Any, training: Training, task: PolicyTask) -> PolicyPairs:
    """A policy's pairs with their reference log-probs. Called by all ranks together.

    UserError where none can be trained on.
    """
    rows = encode_files([Path(file) for file in task.pairs], tokenizer, training)
    share = -(-training.heldout_pairs // max(len(task.heldout), 1))
    held_rows = [
        row
        for file in task.heldout
        for row in encode_files([Path(file)], tokenizer, training, limit=share)
    ]
    known = None
    if task.references:
        ids = {row.id for row in (*rows, *held_rows)}
        known = read_references([Path(folder) for folder in task.references], ids)
    examples, left_out = make_examples(rows, known, training)
    heldout, _ = make_examples(held_rows, known, training)
    refused = first_refused(rows)
    if not examples:
        raise UserError(
            f"{task.name}: no pair can be trained on ({count_text(left_out) or 'none'}); "
            + (refused or f"training.max_length is {training.max_length}")
        )
    if refused and is_first():
        log.warning("%s: pairs are left out, the first is %s", task.name, refused)
    if training.pair_weights == "consistency":
        examples = weighted(examples)
    return PolicyPairs(examples, heldout, left_out)


def count_text(left_out: Counter[str]) -> str:
    """As `3 too long, 1 without an answer`."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))


def encode_files(
    files: Sequence[Path], tokenizer: Any, training: Training, limit: int | None = None
) -> list[EncodedRow]:
    """The rows of parquet files in tokens, at most `limit`. Called by all ranks together."""
    return encode_batches(_batches(files, limit), tokenizer, training)


def encode_batches(batches: Iterable[Any], tokenizer: Any, training: Training) -> list[EncodedRow]:
    """The rows of record batches in tokens. Called by all ranks together.

    The columns `prompt` (messages), `chosen` and `rejected` (text or messages) and `id` are needed;
    `swapped` and `consistency` are optional. Each rank encodes its share; all get the result.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    rows: list[EncodedRow] = []
    for batch in batches:
        # Typed, since a rank may have no row.
        places = pa.array(range(rank, batch.num_rows, world), pa.int64())
        mine = batch.take(places).to_pylist()
        shares = gather_to_all([_encode_row(tokenizer, row, training) for row in mine])
        rows += [shares[i % world][i // world] for i in range(batch.num_rows)]
    return rows


def _batches(files: Sequence[Path], limit: int | None) -> Iterator[Any]:
    """Record batches of at most ROWS rows, the first `limit` rows in all."""
    left = limit
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(ROWS):
            part = batch if left is None else batch.slice(0, left)
            yield part
            if left is not None:
                left -= part.num_rows
                if left == 0:
                    return


def _encode_row(tokenizer: Any, row: Mapping[str, Any], training: Training) -> EncodedRow:
    encoded = pair_in_tokens(
        tokenizer, row["prompt"], _text(row["chosen"]), _text(row["rejected"]), training
    )
    pair = encoded.pair
    if not isinstance(pair, Unusable):
        pair = _compact(pair[0]), _compact(pair[1])
    return EncodedRow(
        row["id"], pair, row.get("swapped", False), row.get("consistency"), encoded.reason
    )


def first_refused(rows: Sequence[EncodedRow]) -> str | None:
    """The first pair that the chat template refuses, and why."""
    refused = (row for row in rows if row.reason is not None)
    return next((f"pair {row.id}: {row.reason}" for row in refused), None)


def _compact(encoded: Encoded) -> Encoded:
    return Encoded(np.asarray(encoded.ids, dtype=np.int32), encoded.start)


def make_examples(
    rows: Sequence[EncodedRow], known: Mapping[str, ReferenceLogps] | None, training: Training
) -> tuple[list[Example], Counter[str]]:
    """Examples of rows, and the number of unusable rows by reason.

    known: reference log-probs by id; None for an objective without. UserError where a pair lacks
    them, or has those of other tokens.
    """
    examples: list[Example] = []
    unusable: Counter[str] = Counter()
    for row in rows:
        if isinstance(row.pair, Unusable):
            unusable[row.pair] += 1
            continue
        chosen, rejected = row.pair
        tokens = pair_tokens(chosen, rejected)
        if not OBJECTIVES[training.objective].of_pairs:
            rejected = NO_ANSWER  # not read, so not kept in memory
        example = Example(row.id, chosen, rejected, tokens, row.consistency)
        examples.append(example if known is None else _with_reference(example, row.swapped, known))
    return examples, unusable


def weighted(examples: Sequence[Example]) -> list[Example]:
    """The examples with weights (1 + c) / 2 by their consistency c, scaled to a mean of 1.

    A pair whose gaps are all zero, which only a method without a filter keeps, counts as c = 0.
    """
    cosines = [each.consistency for each in examples]
    if any(cosine is None for cosine in cosines):
        raise UserError("training.pair_weights: these pairs have no column `consistency`")
    weights = (1 + np.nan_to_num(np.array(cosines, dtype=np.float64))) / 2
    if not weights.sum() > 0:
        raise UserError("training.pair_weights: every pair has the consistency -1, a weight of 0")
    scaled = (weights / weights.mean()).tolist()
    return [replace(each, weight=weight) for each, weight in zip(examples, scaled, strict=True)]


def _with_reference(
    example: Example, swapped: bool, known: Mapping[str, ReferenceLogps]
) -> Example:
    reference = known.get(example.id)
    if reference is None:
        raise UserError(f"pair {example.id} has no reference log-probs; {FIX}")
    pair = (example.chosen, example.rejected)
    if reference.tokens != tokens_hash(*(reversed(pair) if swapped else pair)):
        raise UserError(
            f"the reference log-probs of pair {example.id} are of other tokens; does the chat "
            f"template depend on the day? {FIX}"
        )
    sides = (reference.chosen, reference.rejected)
    chosen, rejected = reversed(sides) if swapped else sides
    return replace(example, reference_chosen=chosen, reference_rejected=rejected)


def tokens_hash(chosen: Encoded, rejected: Encoded) -> str:
    """Hash of a pair's token ids and of where its answers begin."""
    digest = xxhash.xxh3_128()
    for each in (chosen, rejected):
        ids = np.asarray(each.ids, dtype=np.int32)
        digest.update(np.array([len(ids), each.start], dtype=np.int64).tobytes())
        digest.update(ids.tobytes())
    return digest.hexdigest()[:16]


def _text(answer: str | Sequence[Mapping[str, str]]) -> str:
    return answer if isinstance(answer, str) else answer[-1]["content"]
