"""Which soups of a run are made in one pass, and which of them read theta_0."""

from __future__ import annotations

from collections.abc import Iterable

from vcsoup_dist.souping.grids import weight_of_base
from vcsoup_dist.workspace import Product


def passes(soups: Iterable[Product]) -> list[list[Product]]:
    """The soups that are made together: of one method and seed, all with theta_0 or all without.

    So those on the simplex are made as in a run that has no others.
    """
    groups: dict[tuple[str | None, int | None, bool], list[Product]] = {}
    for each in soups:
        groups.setdefault((each.method, each.seed, has_base(each)), []).append(each)
    return list(groups.values())


def has_base(soup: Product) -> bool:
    """Whether theta_0 is one of the models that a soup is the sum of."""
    return bool(weight_of_base(soup.weights or ()))
