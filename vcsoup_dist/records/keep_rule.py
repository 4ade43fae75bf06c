"""Which of a value's pairs a filter keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["all", "threshold", "ratio", "all_positive", "random", "as_many_as"]


@dataclass(frozen=True)
class KeepRule:
    """A rule, as a method asks for it; fields that its kind does not read are None."""

    kind: Kind
    """`all`: every pair with rewards; `threshold`: c >= threshold; `ratio`: the best share by c;
    `all_positive`: all gaps > 0; `random`: a random share; `as_many_as`: a random subset of the
    size of another filtered set."""
    threshold: float | None = None
    ratio: float | None = None
    min_norm: float = 0.0
    """Pairs with a shorter gap vector are dropped first, but by `all`."""

    def as_json(self) -> dict[str, Any]:
        """JSON-able, without what the kind does not read."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> KeepRule:
        """The rule that `as_json` made this of."""
        return cls(**content)
