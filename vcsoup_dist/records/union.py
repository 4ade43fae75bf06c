"""`union`: the pairs of all datasets with what every value says of them, for reweighting methods.

train.parquet, heldout.parquet    a row per pair that has all rewards, by `union_schema`
manifest.json                     `UnionManifest`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from vcsoup_dist.records.json_record import read_record, write_record
from vcsoup_dist.records.pairs import MANIFEST

TRAIN, HELD_OUT = "train.parquet", "heldout.parquet"


def union_schema(values: Sequence[str]) -> pa.Schema:
    """Columns of the parquet files; N values.

    `row`: place in the dataset's training, or held-out, pairs; `once`: whether the pair is in the
    union, which has two answers to one prompt once, and no prompt that another dataset holds out;
    `prefers_<value>`: 1 where the value prefers the chosen answer, -1 the rejected, 0 neither: by
    people where a dataset of the value's own compares the answers, else by the sign of its gap;
    `chosen_<value>`, `rejected_<value>`: rewards.
    """
    origin = [("id", pa.string()), ("dataset", pa.string()), ("row", pa.uint32())]
    prefers = [(f"prefers_{value}", pa.int8()) for value in values]
    rewards = [
        (f"{side}_{value}", pa.float64()) for value in values for side in ("chosen", "rejected")
    ]
    return pa.schema([*origin, ("once", pa.bool_()), *prefers, *rewards])


@dataclass(frozen=True)
class Temperature:
    """a_j: what makes a reward's differences the logits of its value's preferences."""

    a: float | None
    """Per unit of reward; None where no positive one exists."""
    pairs: int
    """Held-out pairs that it was fitted on; 0 where it is taken from the other values."""
    agree: float | None
    """Share of them whose chosen answer has the higher reward; a tie counts one half."""
    capped: bool = False
    """Whether it is the largest that is allowed, since the reward hardly ever errs."""


@dataclass(frozen=True)
class UnionManifest:
    """Counts and statistics of the union; rewards in the order of `values`."""

    VERSION: ClassVar[int] = 1

    values: list[str]
    pairs: int
    """Training pairs of the union, each pair of answers once."""
    rows: int
    """Of train.parquet."""
    heldout: int
    """Rows of heldout.parquet."""
    without_reward: int
    """Training pairs that are left out, since a value has no reward for them."""
    held_out_elsewhere: int
    """Training pairs that are not in the union, since another dataset holds their prompt out."""
    mean: dict[str, float]
    """By value, of chosen and rejected answers of the union pooled."""
    std: dict[str, float]
    """The same, with ddof = 0."""
    usable: dict[str, int]
    """Trained value -> pairs that its own policy would have before any filter."""
    temperatures: dict[str, Temperature]

    @property
    def pairs_of_a_value(self) -> int:
        """Of one value's policy, on average: by them the steps of a trade-off's are counted."""
        return -(-sum(self.usable.values()) // len(self.usable))

    @property
    def answers_of_all_values(self) -> int:
        """Of the policies of all values together, before any filter."""
        return 2 * sum(self.usable.values())

    def write(self, folder: Path) -> None:
        """Write manifest.json into the folder of a product."""
        write_record(folder / MANIFEST, self)

    @classmethod
    def read(cls, folder: Path) -> UnionManifest:
        """Read that of a product; UserError where it is damaged or of another version."""
        return read_record(folder / MANIFEST, cls)
