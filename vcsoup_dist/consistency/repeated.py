"""Pairs that a borrowing value may not use: the same two answers again, or a held-out prompt."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Ids = NDArray[np.uint64]


def repeated_and_held_out(
    comparisons: Iterable[tuple[Ids, Ids]], total: int, held_out: Ids | None
) -> tuple[Mask, Mask]:
    """[P] whether an earlier pair compares the same answers, and whether the prompt is held out.

    comparisons: answers and prompts of P pairs in parts, as `read_comparisons` gives them;
    held_out: the held-out prompts, sorted.
    """
    answers, is_held_out = np.empty(total, np.uint64), np.zeros(total, dtype=bool)
    filled = 0
    for part, prompts in comparisons:
        rows = slice(filled, filled + len(part))
        answers[rows] = part
        if held_out is not None and len(held_out):
            found = np.searchsorted(held_out, prompts).clip(max=len(held_out) - 1)
            is_held_out[rows] = held_out[found] == prompts
        filled += len(part)
    assert filled == total
    return _repeated(answers), is_held_out


def _repeated(ids: Ids) -> Mask:
    """[P] whether the same id stands before."""
    ordered = np.sort(ids)
    if (ordered[1:] != ordered[:-1]).all():  # often so, and without an index to sort along
        return np.zeros(len(ids), dtype=bool)
    del ordered
    _, first = np.unique(ids, return_index=True)
    repeated = np.ones(len(ids), dtype=bool)
    repeated[first] = False
    return repeated
