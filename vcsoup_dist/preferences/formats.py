"""Rows in public formats -> canonical pairs: which format a row is in, and what decides its order.

`ordered` and `rated` hold one function per format. A row of `helpsteer` is half a pair:
`grouped_ratings` puts the halves together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vcsoup_dist.errors import UserError
from vcsoup_dist.preferences.canonical import Comparison, canonical
from vcsoup_dist.preferences.messages import MissingColumn, column
from vcsoup_dist.preferences.ordered import HH_START, HH_TURN, from_hh, from_trl
from vcsoup_dist.preferences.other_columns import NOT_READ, SYSTEM, with_system
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Pair, Row
from vcsoup_dist.preferences.rated import (
    PKU_LABELS,
    completions,
    from_pku,
    from_ultrafeedback,
    helpsteer_ratings,
    ultrafeedback_ratings,
)
from vcsoup_dist.preferences.values import shown_names

ORDERED: dict[str, Callable[[Row], Comparison]] = {"trl": from_trl, "hh": from_hh}
RATED: dict[str, Callable[[Row, str, Sequence[str]], Comparison]] = {
    "pku": from_pku,
    "ultrafeedback": from_ultrafeedback,
}
COLUMNS = frozenset({
    "prompt", "chosen", "rejected", "response", "response_0", "response_1", "instruction",
    "completions", "response_0_severity_level", "response_1_severity_level",
    *PKU_LABELS.values(), *SYSTEM, *NOT_READ,
})  # fmt: skip
"""Columns that any format reads, besides numbers, which can be ratings and scores."""


def detect_format(row: Row) -> str:
    """Name of the format of a dataset's first readable row; raises BadRow where it has none."""
    if "chosen" not in row:
        if "completions" in row and "instruction" in row:
            return "ultrafeedback"
        if "response_0" in row and "response_1" in row:
            return "pku"
        if "response" in row:
            return "helpsteer"
    chosen, prompt = column(row, "chosen"), row.get("prompt")
    if isinstance(chosen, str):
        if prompt is None and HH_TURN.search(chosen):
            return "hh"
        if isinstance(prompt, str) and chosen.startswith(HH_START):
            return "hh"
    if isinstance(chosen, list) or prompt is not None:
        return "trl"
    raise MissingColumn("prompt", row, row)


def row_format(row: Row, known: str) -> str:
    """The format of a row of a dataset that begins as `known`.

    Rows that say themselves what is chosen may be mixed: each is in one format alone.
    """
    if known not in ORDERED:
        return known
    try:
        found = detect_format(row)
    except BadRow:
        return known
    return found if found in ORDERED else known


def check_preferred_by(row: Row, format: str, preferred_by: str | None) -> None:
    """Whether a dataset's first readable row offers what `preferred_by` names.

    Raises UserError where it does not, BadRow or LeftOut where the row cannot decide it.
    """
    if format in ORDERED:
        if preferred_by is not None:
            raise UserError(
                f"`preferred_by: {preferred_by}` is for rated responses, but these rows are in "
                f"format `{format}`, which says itself what is chosen; remove the key"
            )
        return
    offered = _offered(row, format)
    if preferred_by not in offered:
        given = "is missing" if preferred_by is None else f"is `{preferred_by}`"
        raise UserError(
            f"rows in format `{format}` need to know which response is chosen, but the key "
            f"`preferred_by` {given}; the data offers: {shown_names(offered)}"
        )


def _offered(row: Row, format: str) -> list[str]:
    if format == "pku":
        found = [name for name, label in PKU_LABELS.items() if row.get(label) is not None]
        if not found:
            raise MissingColumn(PKU_LABELS["better"], row, row)
        return found
    if format == "ultrafeedback":
        rated = [ultrafeedback_ratings(each) for each in completions(row)]
        found = list(dict.fromkeys(name for each in rated for name in each))
        if not found:
            raise LeftOut("fewer than two rated responses")
        return found
    column(row, "response")
    found = helpsteer_ratings(row)
    if not found:
        raise BadRow("no column with a rating")
    return found


def to_pair(
    row: Row, format: str, columns: Sequence[str] = (), preferred_by: str | None = None
) -> Pair:
    """The canonical pair of a row that holds both its answers; raises BadRow or LeftOut.

    `columns` names the scores to keep; the formats of RATED need `preferred_by`.
    """
    if format in ORDERED:
        found = ORDERED[format](row)
    else:
        assert preferred_by is not None, format
        found = RATED[format](row, preferred_by, columns)
    prompt = with_system(row, found.prompt)
    if prompt is not found.prompt:
        found = replace(found, prompt=prompt)
    return canonical(found, columns)
