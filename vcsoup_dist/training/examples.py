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
from vcsoup_dist.recipe import Training
from vcsoup_dist.training.distributed import gather_to_all
from vcsoup_dist.training.pair_tokens import pair_in_tokens

ROWS = 4096  # texts in memory at a time

NOTHING = Encoded([], 0)

Reference = tuple[str, np.ndarray, np.ndarray]
"""Hash of the tokens, log-probs of chosen and rejected."""


@dataclass(frozen=True)
class Example:
    """One preference pair, ready to be packed."""

    id: str
    chosen: Encoded
    rejected: Encoded
    tokens: int
    """Of both, what they begin with counted once: what the pair costs in a forward."""
    consistency: float | None = None
    """The cosine that the filter judged the pair by."""
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
    turned: bool
    """Whether the file has the pair the other way round than its reference."""
    consistency: float | None
    reason: str | None = None
    """Why the chat template does not take the pair."""


def encode_files(
    files: Sequence[Path], tokenizer: Any, training: Training, limit: int | None = None
) -> list[EncodedRow]:
    """The rows of parquet files in tokens, at most `limit`. Called by all ranks together.

    The columns `prompt` (messages), `chosen` and `rejected` (text or messages) and `id` are needed;
    `turned` and `consistency` may be there. Each rank does its share; all have the result.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    rows: list[EncodedRow] = []
    for batch in _batches(files, limit):
        # Of its own type, since a rank may have no row, and an empty list would be of none.
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
    found = pair_in_tokens(
        tokenizer, row["prompt"], _text(row["chosen"]), _text(row["rejected"]), training
    )
    pair = found.pair
    if not isinstance(pair, Unusable):
        pair = _compact(pair[0]), _compact(pair[1])
    return EncodedRow(
        row["id"], pair, row.get("turned", False), row.get("consistency"), found.reason
    )


def first_refused(rows: Sequence[EncodedRow]) -> str | None:
    """The first pair that the chat template does not take, and why, for a message."""
    refused = (row for row in rows if row.reason is not None)
    return next((f"pair {row.id}: {row.reason}" for row in refused), None)


def _compact(encoded: Encoded) -> Encoded:
    return Encoded(np.asarray(encoded.ids, dtype=np.int32), encoded.start)


def make_examples(
    rows: Sequence[EncodedRow], known: Mapping[str, Reference] | None, training: Training
) -> tuple[list[Example], Counter[str]]:
    """Examples of rows, and how many rows are unusable, by reason.

    known: reference log-probs by id; None for an objective without. Raises UserError where a pair
    has none, or has those of other tokens.
    """
    examples: list[Example] = []
    unusable: Counter[str] = Counter()
    for row in rows:
        if isinstance(row.pair, Unusable):
            unusable[row.pair] += 1
            continue
        chosen, rejected = row.pair
        tokens = pair_tokens(chosen, rejected)
        if training.objective == "sft":
            rejected = NOTHING  # is not read, so it need not stay in memory
        example = Example(row.id, chosen, rejected, tokens, row.consistency)
        examples.append(example if known is None else _with_reference(example, row.turned, known))
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


def _with_reference(example: Example, turned: bool, known: Mapping[str, Reference]) -> Example:
    if example.id not in known:
        raise UserError(
            f"pair {example.id} has no reference log-probs; remove the run's reference/ folder"
        )
    pair = (example.chosen, example.rejected)
    of_tokens, *sides = known[example.id]
    if of_tokens != tokens_hash(*(reversed(pair) if turned else pair)):
        raise UserError(
            f"the reference log-probs of pair {example.id} are of other tokens; does the chat "
            "template depend on the day? remove the run's reference/ folder"
        )
    chosen, rejected = reversed(sides) if turned else sides
    return replace(example, reference_chosen=chosen, reference_rejected=rejected)


def load_references(folders: Iterable[Path], wanted: set[str]) -> dict[str, Reference]:
    """Reference log-probs of the pairs `wanted` by id, from folders as reference.py makes them."""
    found: dict[str, Reference] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.parquet")):
            table = pq.read_table(file)
            chosen, rejected = (_ragged(table[side]) for side in ("chosen", "rejected"))
            ids, tokens = table["id"].to_pylist(), table["tokens"].to_pylist()
            for i, (id_, hashed) in enumerate(zip(ids, tokens, strict=True)):
                if id_ in wanted and hashed is not None:
                    found[id_] = (hashed, chosen[i], rejected[i])
    return found


def _ragged(column: Any) -> list[np.ndarray]:
    """A column of lists of fp32 as views of one array."""
    joined = column.combine_chunks()
    offsets = joined.offsets.to_numpy()
    return np.split(joined.values.to_numpy(), offsets[1:-1])


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
