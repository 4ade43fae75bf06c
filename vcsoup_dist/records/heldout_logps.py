"""`heldout_logps.parquet`: one model's log-probs of both answers of held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.files import write_atomically
from vcsoup_dist.records.parquet_version import check_version, with_version

HELDOUT_LOGPS = "heldout_logps.parquet"
VERSION = 1

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("dataset", pa.string()),
        ("chosen", pa.float64()),
        ("rejected", pa.float64()),
    ]
)


@dataclass(frozen=True)
class HeldoutLogps:
    """Of P pairs, in the same order for all models of a run."""

    ids: list[str]
    datasets: list[str]
    logps: NDArray[np.float64]
    """[P, 2]: of the chosen and of the rejected answer, summed over its tokens, in nats."""

    def write(self, folder: Path) -> None:
        """Write heldout_logps.parquet atomically."""
        columns = [self.ids, self.datasets, self.logps[:, 0], self.logps[:, 1]]
        table = pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)
        sink = pa.BufferOutputStream()
        pq.write_table(with_version(table, VERSION), sink)
        write_atomically(folder / HELDOUT_LOGPS, sink.getvalue().to_pybytes())

    @classmethod
    def read(cls, folder: Path) -> HeldoutLogps:
        """Read heldout_logps.parquet; UserError where it is of another version."""
        table = pq.read_table(folder / HELDOUT_LOGPS)
        check_version(folder / HELDOUT_LOGPS, table.schema, VERSION)
        sides = [table[name].to_numpy() for name in ("chosen", "rejected")]
        return cls(table["id"].to_pylist(), table["dataset"].to_pylist(), np.stack(sides, axis=1))
