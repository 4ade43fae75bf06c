"""Rated responses, a row each -> the best and the worst of every prompt, streaming.

Rows of one prompt belong together where they follow one another. Only the best and the worst so far
are held, so a prompt may have any number of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vcsoup_dist.preferences.comparison import Comparison
from vcsoup_dist.preferences.id_set import IdSet
from vcsoup_dist.preferences.pair import BadRow, LeftOut, prompt_id
from vcsoup_dist.preferences.rated import Rated, compared

BETWEEN = "neither best nor worst of its prompt"


@dataclass
class _Ranked:
    """The best and the worst of a prompt's rows so far; the same row as long as all are equal."""

    best: tuple[int, Rated, float]
    worst: tuple[int, Rated, float]
    rows: int = 1


def pair_neighbours(
    rows: Iterable[tuple[int, Rated | BadRow]], preferred_by: str, tally: Counter[str]
) -> Iterator[tuple[int, Comparison | BadRow | LeftOut | None]]:
    """One item for every row, under its number.

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
            rating = rated.ratings.get(preferred_by)
            if rating is None:
                raise BadRow(f"missing rating `{preferred_by}`")
        except BadRow as bad:
            yield number, bad
            continue
        row = (number, rated, rating)
        if ranked is not None and rated.prompt == ranked.best[1].prompt:
            ranked.rows += 1
            yield from _rank(ranked, row, preferred_by)
            continue
        if ranked is not None:
            yield from _close(ranked, preferred_by)
        if not seen.add(int(identity, 16)):
            tally["returned_prompts"] += 1
        ranked = _Ranked(row, row)
    if ranked is not None:
        yield from _close(ranked, preferred_by)


def _rank(
    ranked: _Ranked, row: tuple[int, Rated, float], preferred_by: str
) -> Iterator[tuple[int, LeftOut]]:
    """Take in one more row; yields the row that is now out of the running, if any."""
    rating = row[2]
    alone = ranked.best is ranked.worst
    if rating > ranked.best[2]:
        out, ranked.best = ranked.best, row
    elif rating < ranked.worst[2]:
        out, ranked.worst = ranked.worst, row
    elif rating in (ranked.best[2], ranked.worst[2]):
        yield row[0], LeftOut(f"tie by `{preferred_by}`")
        return
    else:
        out = row
    if not alone:
        yield out[0], LeftOut(BETWEEN)


def _close(ranked: _Ranked, preferred_by: str) -> Iterator[tuple[int, Comparison | LeftOut | None]]:
    best, worst = ranked.best, ranked.worst
    if ranked.rows == 1:
        yield best[0], LeftOut("the only response to its prompt")
    elif best is worst:
        yield best[0], LeftOut(f"tie by `{preferred_by}`")
    else:
        yield min(best[0], worst[0]), None
        yield max(best[0], worst[0]), compared(best[1], worst[1])
