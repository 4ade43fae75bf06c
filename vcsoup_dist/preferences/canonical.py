"""What every format is read into, two answers in order, and the pair that this becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

from vcsoup_dist.preferences.messages import (
    MissingColumn,
    check_prompt,
    is_messages_as_text,
)
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Message, Pair, pair_id
from vcsoup_dist.preferences.values import is_blank, kind_of

AS_LISTS = "write them as lists of objects (json.loads makes these of JSON)"
LONGEST = 1 << 22  # characters of a text, about a million tokens; beyond it the file is broken


@dataclass(frozen=True)
class Comparison:
    """A chosen and a rejected answer, as their row says; nothing is checked yet."""

    prompt: list[Message]
    chosen: str
    rejected: str
    columns: Mapping[str, Any]
    """What a reward may name as a score."""
    unrated: frozenset[str] = frozenset()
    """Names of columns that the data has, but not for these two answers."""


def canonical(found: Comparison, columns: Sequence[str] = ()) -> Pair:
    """The pair, with the scores named by `columns`; raises BadRow or LeftOut."""
    check_prompt(found.prompt)
    _check_plain(found)
    if is_blank(found.chosen) or is_blank(found.rejected):
        raise BadRow("empty response")
    if found.chosen == found.rejected:
        raise BadRow("chosen equals rejected")
    texts = (found.chosen, found.rejected, *(each["content"] for each in found.prompt))
    if max(map(len, texts)) > LONGEST:
        raise BadRow(f"over-long: a text of more than {LONGEST:,} characters")
    scores = {}
    for name in columns:
        if name in found.unrated:
            raise LeftOut(f"no rating for `{name}`")
        scores[name] = number(found.columns, name)
    identity = pair_id(found.prompt, found.chosen, found.rejected)
    return Pair(identity, found.prompt, found.chosen, found.rejected, scores)


def _check_plain(found: Comparison) -> None:
    """Raises BadRow where a text holds messages, as tables that know no lists keep them.

    One answer alone may do so: some are asked for.
    """
    chosen = is_messages_as_text(found.chosen, "assistant")
    if chosen and is_messages_as_text(found.rejected, "assistant"):
        raise BadRow(f"both answers are messages written as text; {AS_LISTS}")
    last = found.prompt[-1]["content"]
    if len(found.prompt) <= 2 and is_messages_as_text(last, "user"):
        raise BadRow(f"the prompt is messages written as text; {AS_LISTS}")


def is_number(value: Any) -> bool:
    """Whether a value of a row can be a score or a rating."""
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def number(row: Mapping[str, Any], name: str) -> float:
    """The finite number that a row has under `name`; raises BadRow."""
    value = row.get(name)
    if value is None:
        raise MissingColumn(name, row, (each for each in row if is_number(row[each])))
    if not is_number(value):
        raise BadRow(f"score column `{name}` is {kind_of(value)}, not a number")
    try:
        found = float(value)
    except (OverflowError, ValueError):  # an integer too large, a signalling NaN
        found = math.nan
    if not math.isfinite(found):
        raise BadRow(f"score column `{name}` is not a finite number")
    return found
