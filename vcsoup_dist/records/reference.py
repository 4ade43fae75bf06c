"""Log-probs of preference pairs under theta_0: a parquet file for each row group of pairs.

    train-00000-00000.parquet, heldout-00000.parquet    id, tokens, chosen, rejected as in
                                                        `ReferenceLogps`; all but the id are null
                                                        where a pair is unusable

A file that exists is complete. Pairs are found by id and checked by their tokens, so all values,
methods and objectives that train on a pair share its log-probs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_atomically

VERSION = b"1"
LOGPS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [("id", pa.string()), ("tokens", pa.string()), ("chosen", LOGPS), ("rejected", LOGPS)],
    metadata={"version": VERSION},
)
FIX = "remove the run's reference/ folder and run again"


@dataclass(frozen=True)
class ReferenceLogps:
    """Log-probs of one pair's answers."""

    tokens: str
    """Hash of the pair's token ids."""
    chosen: np.ndarray
    """[tokens of the answer] fp32, in nats."""
    rejected: np.ndarray


def write_reference(file: Path, ids: Sequence[str], logps: Sequence[ReferenceLogps | None]) -> None:
    """Write the log-probs of pairs, None for an unusable one."""
    columns = [
        [None if each is None else getattr(each, name) for each in logps]
        for name in SCHEMA.names[1:]
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table([list(ids), *columns], schema=SCHEMA), sink)
    write_atomically(file, sink.getvalue().to_pybytes())


def read_references(folders: Iterable[Path], ids: Collection[str]) -> dict[str, ReferenceLogps]:
    """The log-probs of the pairs `ids`, by id; UserError for a file of another version."""
    found: dict[str, ReferenceLogps] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.parquet")):
            table = pq.read_table(file)
            version = (table.schema.metadata or {}).get(b"version", b"none")
            if version != VERSION:
                raise UserError(
                    f"{file}: is of version {version.decode()}, and this vcsoup_dist reads version "
                    f"{VERSION.decode()}; {FIX}"
                )
            chosen, rejected = (_ragged(table[side]) for side in ("chosen", "rejected"))
            rows = zip(table["id"].to_pylist(), table["tokens"].to_pylist(), strict=True)
            for i, (id_, tokens) in enumerate(rows):
                if id_ in ids and tokens is not None:
                    found[id_] = ReferenceLogps(tokens, chosen[i], rejected[i])
    return found


def _ragged(column: Any) -> list[np.ndarray]:
    """A column of lists of fp32 as views of one array."""
    joined = column.combine_chunks()
    offsets = joined.offsets.to_numpy()
    return np.split(joined.values.to_numpy(), offsets[1:-1])
