"""`scores/<dataset>/<value>`: a parquet file per file of pairs, of its name, and statistics.

Held-out pairs have theirs only where something reads it. While a product is being made it has a
file per shard of pairs instead, by `shard_name`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.files import replacing
from vcsoup_dist.moments import moments
from vcsoup_dist.records.json_record import read_record, write_record
from vcsoup_dist.records.pairs import MANIFEST, PairsFile

Array = NDArray[np.float64]

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("chosen", pa.float64()),
        ("rejected", pa.float64()),
        ("failure", pa.string()),
    ]
)
COUNTS = (b"truncated", b"truncated_responses", b"equal_pairs")  # metadata keys
ROUNDING = {"fp32": 1e-6, "bf16": 2e-3}
"""Of numbers that were computed so, the share that tells nothing: what two packs of the same text
may differ by. A reward whose deviation is no larger beside its size is constant."""
REASONS_COUNTED = 1000  # different ones; a reason may quote a text, so that no two are equal
REASONS_LISTED = 10


@dataclass(frozen=True)
class ScoreShard:
    """The rewards of P pairs, higher being better."""

    ids: list[str]
    chosen: Array
    """[P] float64, NaN where the pair has no reward."""
    rejected: Array
    """[P] float64, NaN where `chosen` is."""
    truncated: int = 0
    """Texts (at most 2 P) of which something was cut."""
    truncated_responses: int = 0
    """Those of them whose response alone was too long."""
    equal_pairs: int = 0
    """Pairs whose two texts are the same tokens to the reward model, so that their gap is 0."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Position of a pair without a reward -> why."""


def shard_name(index: int, heldout: bool = False) -> str:
    """File name of the scores of training, or held-out, shard `index`."""
    return f"{'heldout' if heldout else 'shard'}-{index:05d}.parquet"


def write_scores(path: Path, shard: ScoreShard) -> None:
    """Write the file as one; a reader sees all of it or nothing."""
    failures = [shard.failures.get(i) for i in range(len(shard.ids))]
    columns = [shard.ids, shard.chosen, shard.rejected, pa.array(failures, pa.string())]
    counts = (shard.truncated, shard.truncated_responses, shard.equal_pairs)
    _write(path, pa.Table.from_arrays(columns, schema=SCHEMA), counts)


def join_scores(path: Path, shards: Sequence[Path]) -> None:
    """Write the scores of consecutive shards, of any number, into one file, as `write_scores`."""
    tables = [_read(shard) for shard in shards]
    counts = [sum(_counts(table)[i] for table in tables) for i in range(len(COUNTS))]
    plain = [table.replace_schema_metadata() for table in tables]
    joined = pa.concat_tables([SCHEMA.empty_table(), *plain]).combine_chunks()
    _write(path, joined, counts)


def _write(path: Path, table: pa.Table, counts: Sequence[int]) -> None:
    metadata = {key: str(count).encode() for key, count in zip(COUNTS, counts, strict=True)}
    table = table.replace_schema_metadata(metadata)
    with replacing(path) as aside:  # ids and rewards seldom repeat: dictionaries would cost
        pq.write_table(table, aside, use_dictionary=["failure"])


def _read(path: Path) -> Any:
    return pq.ParquetFile(path).read(use_threads=False)


def _counts(table: pa.Table) -> list[int]:
    return [int(table.schema.metadata[key]) for key in COUNTS]


def read_scores(path: Path) -> ScoreShard:
    """The scores of a file."""
    table = _read(path)
    cut, responses, equal = _counts(table)
    chosen, rejected = (table[name].to_numpy() for name in ("chosen", "rejected"))
    reasons = table["failure"].to_pylist()
    failures = {i: reason for i, reason in enumerate(reasons) if reason is not None}
    return ScoreShard(table["id"].to_pylist(), chosen, rejected, cut, responses, equal, failures)


def has_reward(path: Path) -> bool:
    """Whether any pair of a shard has a reward; reads no more than the file's statistics."""
    metadata = pq.read_metadata(path)
    failures = SCHEMA.names.index("failure")
    columns = [metadata.row_group(i).column(failures) for i in range(metadata.num_row_groups)]
    return sum(int(column.statistics.null_count) for column in columns) > 0


@dataclass(frozen=True)
class FirstUnscored:
    """The first pair without a reward."""

    id: str
    reason: str


@dataclass(frozen=True)
class ScoresManifest:
    """One reward of a dataset's training pairs. Statistics are of those that have it."""

    VERSION: ClassVar[int] = 3

    rows: int
    """Training pairs."""
    scored: int
    """Of these, those with a reward."""
    unscored: int
    """Those without a reward."""
    reasons: dict[str, int]
    """Why, the most frequent reasons."""
    first_unscored: FirstUnscored | None
    truncated: int
    """Texts of which something was cut."""
    truncated_responses: int
    """Those of them whose response alone was too long."""
    equal_pairs: int
    """Pairs whose two texts are the same tokens to the reward."""
    rounding: float
    """Share of a reward's size that tells nothing."""
    mean: float | None
    """Of chosen and rejected pooled; None where no pair has a reward, as all below."""
    std: float | None
    """With ddof = 0."""
    min: float | None
    max: float | None
    constant: bool
    """Whether no two rewards differ but by rounding."""
    files: list[PairsFile]
    """Of the training pairs, in order."""

    def write(self, folder: Path) -> None:
        """Write manifest.json into the folder of a product."""
        write_record(folder / MANIFEST, self)

    @classmethod
    def read(cls, folder: Path) -> ScoresManifest:
        """Read that of a product; UserError where it is damaged or of another version."""
        return read_record(folder / MANIFEST, cls)


def summarise(
    folder: Path, train: Sequence[str], rounding: float = ROUNDING["fp32"]
) -> ScoresManifest:
    """Go over the score files of training pairs, named in order."""
    missing = _Missing()
    total = moments(np.zeros((0, 1)))
    lowest, highest = math.inf, -math.inf
    truncated = responses = equal = 0
    files = []
    for name in train:
        scores = read_scores(folder / name)
        files.append(PairsFile(name, len(scores.ids)))
        missing.add(scores)
        rewards = np.concatenate([scores.chosen, scores.rejected])
        total = total.merged(moments(rewards[:, None]))
        lowest = min(lowest, np.min(rewards, initial=math.inf, where=~np.isnan(rewards)))
        highest = max(highest, np.max(rewards, initial=-math.inf, where=~np.isnan(rewards)))
        truncated += scores.truncated
        responses += scores.truncated_responses
        equal += scores.equal_pairs
    count, mean, std = int(total.count[0]), float(total.mean[0]), float(total.std()[0])
    alike = lowest == highest or std <= rounding * math.hypot(mean, std)
    return ScoresManifest(
        rows=sum(each.rows for each in files),
        scored=count // 2,
        unscored=missing.count,
        reasons=dict(missing.reasons.most_common(REASONS_LISTED)),
        first_unscored=missing.first,
        truncated=truncated,
        truncated_responses=responses,
        equal_pairs=equal,
        rounding=rounding,
        mean=mean if count else None,
        std=std if count else None,
        min=float(lowest) if count else None,
        max=float(highest) if count else None,
        constant=bool(count and alike),
        files=files,
    )


class _Missing:
    """Counts pairs without a reward, and why they have none."""

    def __init__(self) -> None:
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self.first: FirstUnscored | None = None

    def add(self, shard: ScoreShard) -> None:
        self.count += len(shard.failures)
        self._count_reasons(shard.failures.values())
        if self.first is None and shard.failures:
            position, reason = next(iter(shard.failures.items()))
            self.first = FirstUnscored(shard.ids[position], reason)

    def _count_reasons(self, reasons: Iterable[str]) -> None:
        for reason in reasons:
            known = reason in self.reasons or len(self.reasons) < REASONS_COUNTED
            self.reasons[reason if known else "another reason"] += 1
