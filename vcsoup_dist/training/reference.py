"""Log-probs of every pair under theta_0, computed once by the same packed forward as training.

    train-00000.parquet, heldout.parquet    id, tokens: hash of the pair's token ids;
                                            chosen, rejected: fp32 log-prob per answer token,
                                            null where the pair is too long

One file per file of pairs; a file that is there is finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from vcsoup_dist.files import write_atomically
from vcsoup_dist.forward.answers import pack_answers
from vcsoup_dist.forward.packing import budget_batches
from vcsoup_dist.forward.template import Encoded
from vcsoup_dist.progress import progress
from vcsoup_dist.recipe import Training
from vcsoup_dist.training.engine import local_device
from vcsoup_dist.training.examples import encode_row, tokens_hash
from vcsoup_dist.training.jobs import ReferenceTask

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("tokens", pa.string()),
        ("chosen", pa.list_(pa.float32())),
        ("rejected", pa.list_(pa.float32())),
    ]
)


def compute_reference(engine: Any, tokenizer: Any, training: Training, task: ReferenceTask) -> None:
    """Make one dataset's files. Called by all ranks together."""
    output = Path(task.output)
    files = sorted(Path(task.pairs).glob("train-*.parquet")) + [
        Path(task.pairs) / "heldout.parquet"
    ]
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    engine.eval()
    with progress(f"reference {output.parent.name}", rows, "pairs") as advance:
        for file in files:
            if not (output / file.name).exists():
                table = _reference_of(engine, tokenizer, training, file)
                if dist.get_rank() == 0:
                    sink = pa.BufferOutputStream()
                    pq.write_table(table, sink)
                    write_atomically(output / file.name, sink.getvalue().to_pybytes())
            # No rank looks for the next file before this one is there.
            dist.barrier()
            advance(pq.read_metadata(file).num_rows)


def _reference_of(engine: Any, tokenizer: Any, training: Training, file: Path) -> pa.Table:
    rows = pq.read_table(file).to_pylist()
    pairs = [encode_row(tokenizer, row, training) for row in rows]
    sequences: list[Encoded] = [each for pair in pairs if pair for each in pair]
    batches = budget_batches([len(each.ids) for each in sequences], training.tokens_per_batch)
    logps = _sequence_logps(engine, sequences, batches)
    columns: dict[str, list[Any]] = {
        "id": [row["id"] for row in rows],
        "tokens": [tokens_hash(*pair) if pair else None for pair in pairs],
        "chosen": [],
        "rejected": [],
    }
    position = 0
    for pair in pairs:
        columns["chosen"].append(logps[position] if pair else None)
        columns["rejected"].append(logps[position + 1] if pair else None)
        position += 2 if pair else 0
    return pa.table(columns, schema=SCHEMA)


def _sequence_logps(
    engine: Any, sequences: list[Encoded], batches: list[list[int]]
) -> dict[int, list[float]]:
    """Per-token log-probs by sequence index, on every rank; ranks take batches in turn."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine: dict[int, list[float]] = {}
    for turn in range(-(-len(batches) // world)):
        number = turn * world + rank
        # A rank without a batch repeats the first: all must run the same number of forwards.
        indices = batches[number] if number < len(batches) else batches[0]
        answers = pack_answers([sequences[i] for i in indices], local_device())
        with torch.no_grad():
            logps = engine(answers).cpu()
        lengths = [sequences[i].answer_length for i in indices]
        for index, part in zip(indices, logps.split(lengths), strict=True):
            mine[index] = part.tolist()
    gathered: list[dict[int, list[float]]] = [{} for _ in range(world)]
    dist.all_gather_object(gathered, mine)
    return {index: part for share in gathered for index, part in share.items()}
