"""Rated responses, a row each -> the best and the worst of every prompt, streaming.

Rows of one prompt belong together where they follow one another. Only the best and the worst so far
are held, so a prompt may have any number of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vcsoup_dist.preferences.canonical import Comparison
from vcsoup_dist.preferences.id_set import IdSet
from vcsoup_dist.preferences.pair import BadRow, LeftOut, prompt_id
from vcsoup_dist.preferences.rated import Rated, compared, has_all

RatedRow = tuple[int, Rated, float]
"""A row's number, its answer and the rating that decides."""
BETWEEN = "neither best nor worst of its prompt"


@dataclass
class _Ranked:
    """The best and the worst of a prompt's rows so far, which may be one row."""

    best: RatedRow
    worst: RatedRow
    rows: int = 1


def pair_grouped(
    rows: Iterable[tuple[int, Rated | BadRow]],
    preferred_by: str,
    columns: Sequence[str],
    tally: Counter[str],
) -> Iterator[tuple[int, Comparison | BadRow | LeftOut | None]]:
    """One item for every row, under its number; `columns` are the scores that rewards name.

    A Comparison stands at the later of its two rows, None at the earlier. A prompt that comes back
    after others is paired anew, and counted in `tally["returned_prompts"]`.
    """
    seen = IdSet()
    ranked: _Ranked | None = None
    for number, rated in rows:
        try:
            if isinstance(rated, BadRow):
                raise rated
            identity = prompt_id(rated.prompt)
        except BadRow as bad:
            yield number, bad
            continue
        rating = rated.ratings.get(preferred_by)
        if rating is None:
            yield number, LeftOut(f"no rating for `{preferred_by}`")
            continue
        row = (number, rated, rating)
        if ranked is not None and rated.prompt == ranked.best[1].prompt:
            ranked.rows += 1
            yield from _rank(ranked, row, preferred_by, columns)
            continue
        if ranked is not None:
            yield from _close(ranked, preferred_by)
        if not seen.add(int(identity, 16)):
            tally["returned_prompts"] += 1
        ranked = _Ranked(row, row)
    if ranked is not None:
        yield from _close(ranked, preferred_by)


def _rank(
    ranked: _Ranked, row: RatedRow, preferred_by: str, columns: Sequence[str]
) -> Iterator[tuple[int, LeftOut]]:
    """Take in one more row; yields the rows that are now out of the running."""

    def better(each: RatedRow) -> tuple[float, bool]:
        return each[2], has_all(each[1], "chosen", columns)

    def worse(each: RatedRow) -> tuple[float, bool]:
        return -each[2], has_all(each[1], "rejected", columns)

    running = {each[0]: each for each in (ranked.best, ranked.worst, row)}
    ranked.best = max(ranked.best, row, key=better)
    ranked.worst = max(ranked.worst, row, key=worse)
    ends = (ranked.best[2], ranked.worst[2])
    for number, _, rating in running.values():
        if number not in (ranked.best[0], ranked.worst[0]):
            yield number, LeftOut(f"tie by `{preferred_by}`" if rating in ends else BETWEEN)


def _close(ranked: _Ranked, preferred_by: str) -> Iterator[tuple[int, Comparison | LeftOut | None]]:
    best, worst = ranked.best, ranked.worst
    if ranked.rows == 1:
        yield best[0], LeftOut("the only response to its prompt")
    elif best[2] == worst[2]:
        for number in sorted({best[0], worst[0]}):
            yield number, LeftOut(f"tie by `{preferred_by}`")
    else:
        yield min(best[0], worst[0]), None
        yield max(best[0], worst[0]), compared(best[1], worst[1])
