"""Log-probs of every pair under theta_0, computed once by the same packed forward as training.

    train-00000.parquet, heldout.parquet    id, tokens: hash of the pair's token ids;
                                            chosen, rejected: fp32 log-prob per answer token,
                                            null where the pair is unusable

One file per file of pairs; a file that is there is finished. A pair is found by its id and checked
by its tokens, so all values, methods and objectives that train on it share its log-probs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_atomically
from vcsoup_dist.forward.answers import pack_pairs, pair_tokens
from vcsoup_dist.forward.packing import budget_batches
from vcsoup_dist.forward.template import Encoded, Unusable
from vcsoup_dist.progress import progress
from vcsoup_dist.recipe import Training
from vcsoup_dist.training.distributed import barrier, gather_to_first, local_device
from vcsoup_dist.training.examples import (
    EncodedRow,
    encode_files,
    first_refused,
    tokens_hash,
)
from vcsoup_dist.training.job import ReferenceTask
from vcsoup_dist.training.stopping import StopRequest
from vcsoup_dist.training.watchdog import Watchdog

BATCHES_AT_ONCE = 8
"""Per rank, between two writes: so many that no rank waits long for the others each time."""
BYTES_PER_TOKEN = 4


def compute_reference(
    engine: Any,
    tokenizer: Any,
    training: Training,
    task: ReferenceTask,
    stop: StopRequest,
    watchdog: Watchdog,
) -> bool:
    """Make one dataset's files; False where it was asked to stop before all were there.

    Called by all ranks together.
    """
    output = Path(task.output)
    files = [
        *sorted(Path(task.pairs).glob("train-*.parquet")),
        Path(task.pairs) / "heldout.parquet",
    ]
    pairs = sum(pq.read_metadata(file).num_rows for file in files)
    engine.eval()
    worked = False
    with progress(f"reference {output.parent.name}", pairs, "pairs") as advance:
        for group in _groups(files, training):
            due = [file for file in group if not (output / file.name).exists()]
            if due:
                if stop.on_any_rank(worked):
                    return False
                parts = [(file, encode_files([file], tokenizer, training)) for file in group]
                rows = [row for _, part in parts for row in part]
                if rows and all(row.reason is not None for row in rows):
                    raise UserError(
                        f"{output.parent.name}: the chat template takes none of {len(rows)} pairs; "
                        f"{first_refused(rows)}"
                    )
                logps = _pair_logps(engine, training, rows, watchdog)
                if logps is not None:
                    for file, part in parts:
                        if file in due:
                            _write(output / file.name, part, logps)
                # No rank looks for the next file before these are there.
                barrier()
                worked = True
            advance(sum(pq.read_metadata(file).num_rows for file in group))
    return True


def _groups(files: Sequence[Path], training: Training) -> Iterator[list[Path]]:
    """Files in groups large enough to give every rank some batches.

    The same files give the same groups, also after a kill: what is packed together decides the last
    bits. Tokens are not known yet and estimated by the size of the text.
    """
    enough = BATCHES_AT_ONCE * dist.get_world_size() * training.tokens_per_batch * BYTES_PER_TOKEN
    group: list[Path] = []
    size = 0
    for file in files:
        group.append(file)
        found = pq.read_metadata(file)
        size += sum(found.row_group(i).total_byte_size for i in range(found.num_row_groups))
        if size >= enough:
            yield group
            group, size = [], 0
    if group:
        yield group


def _pair_logps(
    engine: Any, training: Training, rows: Sequence[EncodedRow], watchdog: Watchdog
) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """fp32 log-probs of chosen and rejected by id, on rank 0; ranks take batches in turn."""
    usable: list[tuple[str, tuple[Encoded, Encoded]]] = [
        (row.id, row.pair) for row in rows if not isinstance(row.pair, Unusable)
    ]
    batches = budget_batches([pair_tokens(*pair) for _, pair in usable], training.tokens_per_batch)
    rank, world = dist.get_rank(), dist.get_world_size()
    mine: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for turn in range(-(-len(batches) // world)):
        watchdog.alive()
        number = turn * world + rank
        # A rank without a batch repeats the first: all must run the same number of forwards.
        part = [usable[i] for i in batches[number if number < len(batches) else 0]]
        answers = pack_pairs([pair for _, pair in part], local_device())
        with torch.no_grad():
            logps = engine(answers).cpu().numpy()
        if number >= len(batches):
            continue
        lengths = [side.answer_length for _, pair in part for side in pair]
        sides = np.split(logps, np.cumsum(lengths)[:-1])
        for i, (id_, _) in enumerate(part):
            mine[id_] = (sides[2 * i], sides[2 * i + 1])
    watchdog.rest()
    shares = gather_to_first(mine)
    return (
        None if shares is None else {id_: pair for share in shares for id_, pair in share.items()}
    )


def _write(
    file: Path, rows: Sequence[EncodedRow], logps: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    pairs = [logps.get(row.id) for row in rows]
    table = pa.table(
        {
            "id": pa.array([row.id for row in rows], pa.string()),
            "tokens": pa.array(
                [
                    None if isinstance(row.pair, Unusable) else tokens_hash(*row.pair)
                    for row in rows
                ],
                pa.string(),
            ),
            "chosen": _lists([None if pair is None else pair[0] for pair in pairs]),
            "rejected": _lists([None if pair is None else pair[1] for pair in pairs]),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(file, sink.getvalue().to_pybytes())


def _lists(parts: Sequence[np.ndarray | None]) -> pa.Array:
    return pa.array(parts, pa.list_(pa.float32()))
