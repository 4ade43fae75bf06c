"""How much of an answer was said before in it."""

from __future__ import annotations

from collections.abc import Sequence

RUN = 4
"""Tokens whose return counts as repetition."""


def repeated_share(ids: Sequence[int]) -> float:
    """1 - d / n: of the n runs of 4 tokens in an answer, d are distinct; 0 where it has none.

    seq-rep-4 of Welleck et al., "Neural text generation with unlikelihood training" (2020).
    """
    runs = [tuple(ids[start : start + RUN]) for start in range(len(ids) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
