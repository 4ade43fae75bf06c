"""Log-probs of every pair under theta_0, computed once by the same packed forward as training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answers import pack_pairs, pair_tokens
from vcsoup_dist.forward.packing import budget_batches
from vcsoup_dist.forward.template import Encoded, Unusable
from vcsoup_dist.progress import progress
from vcsoup_dist.recipe import Training
from vcsoup_dist.records.reference import ReferenceLogps, write_reference
from vcsoup_dist.training.distributed import barrier, gather_to_first, local_device
from vcsoup_dist.training.examples import (
    ROWS,
    EncodedRow,
    encode_batches,
    first_refused,
    tokens_hash,
)
from vcsoup_dist.training.job import ReferenceTask
from vcsoup_dist.training.runtime import Runtime

BATCHES_PER_WRITE = 8
"""Of each rank: enough that ranks seldom wait for each other."""
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class RowGroup:
    """A row group of a file of pairs: the unit of recovery."""

    file: Path
    number: int
    rows: int
    size: int
    """Bytes before compression."""

    @property
    def name(self) -> str:
        """File name of its log-probs."""
        return f"{self.file.stem}-{self.number:05d}.parquet"

    def batches(self) -> Iterator[Any]:
        """Its rows as record batches."""
        yield from pq.ParquetFile(self.file).iter_batches(ROWS, row_groups=[self.number])


def compute_reference(runtime: Runtime, task: ReferenceTask) -> bool:
    """Write one dataset's files, one for each row group of pairs; False where stopped on request.

    Called by all ranks together. A file that exists is complete.
    """
    output, pairs = Path(task.output), Path(task.pairs)
    parts = _row_groups([*sorted(pairs.glob("train-*.parquet")), pairs / "heldout.parquet"])
    runtime.engine.eval()
    worked = False
    total = sum(part.rows for part in parts)
    with progress(f"reference {output.parent.name}", total, "pairs") as advance:
        for together in _large_enough(parts, runtime.training):
            due = [part for part in together if not (output / part.name).exists()]
            if due:
                if runtime.stop.on_any_rank(worked):
                    return False
                _compute_together(runtime, together, due, output)
                worked = True
            advance(sum(part.rows for part in together))
    return True


def _row_groups(files: Sequence[Path]) -> list[RowGroup]:
    found = []
    for file in files:
        metadata = pq.read_metadata(file)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        found += [
            RowGroup(file, i, each.num_rows, each.total_byte_size) for i, each in enumerate(groups)
        ]
    return found


def _large_enough(parts: Sequence[RowGroup], training: Training) -> Iterator[list[RowGroup]]:
    """Consecutive row groups that together give every rank some batches.

    The same pairs are put together in the same way, also after a kill: what is packed together
    decides the last bits. Tokens are estimated by the size of the text.
    """
    enough = BATCHES_PER_WRITE * dist.get_world_size() * training.tokens_per_batch * BYTES_PER_TOKEN
    together: list[RowGroup] = []
    size = 0
    for part in parts:
        together.append(part)
        size += part.size
        if size >= enough:
            yield together
            together, size = [], 0
    if together:
        yield together


def _compute_together(
    runtime: Runtime, together: Sequence[RowGroup], due: Sequence[RowGroup], output: Path
) -> None:
    """Compute the pairs of all these row groups, and write the files of those `due`."""
    encoded = {
        part: encode_batches(part.batches(), runtime.tokenizer, runtime.training)
        for part in together
    }
    rows = [row for part in encoded.values() for row in part]
    if rows and all(row.reason is not None for row in rows):
        raise UserError(
            f"{output.parent.name}: the chat template takes none of {len(rows)} pairs; "
            f"{first_refused(rows)}"
        )
    logps = _pair_logps(runtime, rows)
    if logps is not None:
        for part in due:
            ids = [row.id for row in encoded[part]]
            write_reference(output / part.name, ids, [logps.get(id_) for id_ in ids])
    # No rank looks for the next files before these exist.
    barrier()


def _pair_logps(runtime: Runtime, rows: Sequence[EncodedRow]) -> dict[str, ReferenceLogps] | None:
    """Log-probs of the usable rows by id, on rank 0; ranks take batches in turn."""
    usable: list[tuple[str, tuple[Encoded, Encoded]]] = [
        (row.id, row.pair) for row in rows if not isinstance(row.pair, Unusable)
    ]
    lengths = [pair_tokens(*pair) for _, pair in usable]
    batches = budget_batches(lengths, runtime.training.tokens_per_batch)
    rank, world = dist.get_rank(), dist.get_world_size()
    mine: dict[str, ReferenceLogps] = {}
    for turn in range(-(-len(batches) // world)):
        runtime.watchdog.alive()
        number = turn * world + rank
        # A rank without a batch repeats the first: all must run the same number of forwards.
        part = [usable[i] for i in batches[number if number < len(batches) else 0]]
        answers = pack_pairs([pair for _, pair in part], local_device())
        with torch.no_grad():
            logps = runtime.engine(answers).cpu().numpy()
        if number >= len(batches):
            continue
        ends = np.cumsum([side.answer_length for _, pair in part for side in pair])
        sides = np.split(logps, ends[:-1])
        for (id_, pair), chosen, rejected in zip(part, sides[0::2], sides[1::2], strict=True):
            mine[id_] = ReferenceLogps(tokens_hash(*pair), chosen, rejected)
    runtime.watchdog.rest()
    shares = gather_to_first(mine)
    if shares is None:
        return None
    return {id_: logps for share in shares for id_, logps in share.items()}
