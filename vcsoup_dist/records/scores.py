"""`scores/<dataset>/<value>`: a parquet file per slice of pairs, and statistics of them all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.files import replacing
from vcsoup_dist.moments import moments
from vcsoup_dist.records.json_record import read_record, write_record
from vcsoup_dist.records.pairs import MANIFEST, ShardFile

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


def score_name(index: int, heldout: bool = False) -> str:
    """File name of the scores of training shard, or held-out slice, `index`."""
    return f"{'heldout' if heldout else 'shard'}-{index:05d}.parquet"


def write_scores(path: Path, shard: ScoreShard) -> None:
    """Write the file as one; a reader sees all of it or nothing."""
    failures = [shard.failures.get(i) for i in range(len(shard.ids))]
    columns = [shard.ids, shard.chosen, shard.rejected, pa.array(failures, pa.string())]
    table = pa.Table.from_arrays(columns, schema=SCHEMA)
    counts = (shard.truncated, shard.truncated_responses, shard.equal_pairs)
    metadata = {key: str(count).encode() for key, count in zip(COUNTS, counts, strict=True)}
    with replacing(path) as aside:
        pq.write_table(table.replace_schema_metadata(metadata), aside)


def read_scores(path: Path) -> ScoreShard:
    """The scores of one shard."""
    table = pq.read_table(path)
    cut, responses, equal = (int(table.schema.metadata[key]) for key in COUNTS)
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
    """One reward of a dataset's pairs. Statistics are of the training pairs that have a reward."""

    VERSION: ClassVar[int] = 1

    rows: int
    """Training pairs."""
    scored: int
    """Of these, those with a reward."""
    unscored: int
    """Pairs without a reward, held-out ones among them."""
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
    shards: list[ShardFile]
    heldout: list[ShardFile]

    def write(self, folder: Path) -> None:
        """Write manifest.json into the folder of a product."""
        write_record(folder / MANIFEST, self)

    @classmethod
    def read(cls, folder: Path) -> ScoresManifest:
        """Read that of a product; UserError where it is damaged or of another version."""
        return read_record(folder / MANIFEST, cls)


def summarise(
    shards: Sequence[Path], heldout: Sequence[Path], rounding: float = ROUNDING["fp32"]
) -> ScoresManifest:
    """Go over the score files of all training shards and held-out slices of a product."""
    missing = _Missing()
    total = moments(np.zeros((0, 1)))
    lowest, highest = math.inf, -math.inf
    truncated = responses = equal = 0
    files: dict[bool, list[ShardFile]] = {True: [], False: []}
    for path in [*shards, *heldout]:
        shard = read_scores(path)
        is_training = len(files[True]) < len(shards)
        files[is_training].append(ShardFile(path.name, len(shard.ids)))
        missing.add(shard)
        if not is_training:
            continue
        rewards = np.concatenate([shard.chosen, shard.rejected])
        total = total.merged(moments(rewards[:, None]))
        lowest = min(lowest, np.min(rewards, initial=math.inf, where=~np.isnan(rewards)))
        highest = max(highest, np.max(rewards, initial=-math.inf, where=~np.isnan(rewards)))
        truncated += shard.truncated
        responses += shard.truncated_responses
        equal += shard.equal_pairs
    count, mean, std = int(total.count[0]), float(total.mean[0]), float(total.std()[0])
    alike = lowest == highest or std <= rounding * math.hypot(mean, std)
    return ScoresManifest(
        rows=sum(each.rows for each in files[True]),
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
        shards=files[True],
        heldout=files[False],
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
