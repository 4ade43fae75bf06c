"""What all first rows of a dataset lack, reported in one line instead of once per row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from vcsoup_dist.errors import UserError
from vcsoup_dist.preferences.messages import MissingColumn
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Pair
from vcsoup_dist.preferences.shapes import advice
from vcsoup_dist.preferences.values import shown_names

FIRST = 1000
Outcome = TypeVar("Outcome", bound=Pair | BadRow | LeftOut | None)


def watched(
    source: str, outcomes: Iterator[tuple[int, Outcome]], columns: Collection[str]
) -> Iterator[tuple[int, Outcome]]:
    """The same outcomes of rows.

    Raises UserError where the first of them hold no pair because the data does not have a column
    at all; `columns` are those that rewards name.
    """
    lacking = _Lacking()
    for number, outcome in outcomes:
        if isinstance(outcome, Pair):
            yield number, outcome
            yield from outcomes
            return
        lacking.add(outcome)
        if lacking.rows == FIRST:
            lacking.check(source, columns)
        yield number, outcome
    if lacking.rows < FIRST:
        lacking.check(source, columns)


@dataclass
class _Lacking:
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    missing: dict[str, str] = field(default_factory=dict)
    """Reason -> the column that a row did not have."""
    empty: set[str] = field(default_factory=set)
    """Columns that some row had, but without a value."""
    there: dict[str, dict[str, None]] = field(default_factory=dict)
    """Reason -> names of the columns that there are."""

    def add(self, outcome: Pair | BadRow | LeftOut | None) -> None:
        self.rows += 1
        if not isinstance(outcome, BadRow):
            return
        reason = outcome.reason
        self.reasons[reason] += 1
        if isinstance(outcome, MissingColumn):
            if not outcome.absent:
                self.empty.add(outcome.name)
                return
            self.missing[reason] = outcome.name
            self.there.setdefault(reason, {}).update(dict.fromkeys(outcome.there))

    def check(self, source: str, columns: Collection[str]) -> None:
        reason, _ = max(self.reasons.items(), key=lambda item: item[1], default=("", 0))
        if reason not in self.missing or self.missing[reason] in self.empty:
            return
        name, there = self.missing[reason], shown_names(self.there[reason]) or "none"
        if name in columns:
            raise UserError(
                f"{source}: a reward takes its scores from the column `{name}`, which none of the "
                f"first {self.rows} rows has; the data offers: {there}"
            )
        raise UserError(
            f"{source}: none of the first {self.rows} rows is a pair: they have no column "
            f"`{name}`; their columns are: {there}; {advice(self.there[reason])}"
        )
