"""report.json of a filtered set: what a filter kept of a value's pairs, and what it measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vcsoup_dist.records.json_record import read_record, write_record
from vcsoup_dist.records.keep_rule import KeepRule
from vcsoup_dist.records.pairs import PairsFile

REPORT = "report.json"
PAGE = "report.md"
"""The same as a page."""
HISTOGRAM, GAPS, CORRELATION = "histogram.png", "gaps.png", "correlation.png"
"""The plots of the same folder."""


@dataclass(frozen=True)
class PairCounts:
    """Pairs by what became of them; kept and dropped ones sum to `pairs`."""

    pairs: int
    kept: int
    dropped: dict[str, int]
    """Reason -> pairs, each under the first reason that it has."""
    unscored: int
    """Pairs that lack a reward."""
    swapped: int
    """Usable pairs whose chosen and rejected answers are exchanged."""
    swapped_kept: int
    sign_patterns: dict[str, int]
    """Usable pairs by the signs of their gaps, such as `++-`; `0`: prefers neither answer."""
    sign_patterns_kept: dict[str, int]


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs, which no rule filters."""

    pairs: int
    kept: int
    """Less: of borrowed ones those without a reward of the value, ties, and repeated answers."""


@dataclass(frozen=True)
class RuleCount:
    """What a rule keeps of the pairs."""

    name: str
    """As a reader should see it."""
    rule: KeepRule
    is_own: bool
    """Whether the set, or the one whose size it copies, is kept by this rule."""
    count: int
    """Pairs kept."""
    share: float | None
    """Of the usable pairs; None where there are none."""
    all_positive: float | None
    """Share of the kept pairs whose gaps are all positive."""


@dataclass(frozen=True)
class RuleComparison:
    """What other rules keep of the same pairs."""

    usable: int
    """Pairs that no rule leaves out."""
    eligible: int
    """Those of them that rules choose from, all but `all`."""
    rules: list[RuleCount]
    overlap: list[list[float | None]]
    """|A and B| / |A| for rules A (row) and B (column)."""


@dataclass(frozen=True)
class FilterReport:
    """One `filtered/<method>/<name>`; N values."""

    VERSION: ClassVar[int] = 2

    method: str
    """Method instance."""
    rule: KeepRule
    size_of: str | None
    """Method instance whose size `as_many_as` copies."""
    value: str
    values: list[str]
    """[N], in the order of signs and matrices."""
    datasets: list[str]
    normalisation: str
    scope: str
    counts: PairCounts
    heldout: HeldOut
    scale: dict[str, dict[str, float]]
    """Dataset -> value -> s, the unit of its gaps."""
    equal_pairs: dict[str, dict[str, int]]
    """Dataset -> value -> pairs whose two texts are the same tokens to the reward model."""
    correlation: list[list[float | None]]
    """[N, N] of the gaps; None where one of the two does not vary."""
    conflicts: list[list[float]]
    """[N, N] share of the usable pairs in which two values prefer different answers."""
    comparison: RuleComparison
    files: list[PairsFile]
    """Of the kept pairs, in order."""

    def write(self, folder: Path) -> None:
        """Into the folder of a filtered set."""
        write_record(folder / REPORT, self)

    @classmethod
    def read(cls, folder: Path) -> FilterReport:
        """Of a filtered set; UserError where it is damaged or of another version."""
        return read_record(folder / REPORT, cls)
