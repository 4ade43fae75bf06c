"""In which order products are made: kind by kind, where kinds are stages or commands.

A kind comes twice where some of its products read what a later one makes, such as a policy that is
trained on the log-probs of another policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vcsoup_dist.workspace import Product

Turn = tuple[str, list[Product]]
"""A kind, and those of its products that are made together."""


def in_turns(
    products: Sequence[Product],
    kinds: Iterable[str],
    kind_of: Callable[[Product], str],
    reads: Callable[[Product], Iterable[Product]],
) -> list[Turn]:
    """Products, each after its inputs, in turns whose products read nothing of a later one.

    kinds: all of them, in the order that is kept where it can be. As few turns as that allows:
    a kind is divided only where nothing else can be made first.
    """
    groups: dict[str, list[Product]] = {kind: [] for kind in kinds}
    for each in products:
        groups[kind_of(each)].append(each)
    left = {each.name for each in products}
    turns: list[Turn] = []

    def ready(own: Sequence[Product]) -> list[Product]:
        found: dict[str, Product] = {}
        for each in own:
            if all(one.name in found or one.name not in left for one in reads(each)):
                found[each.name] = each
        return list(found.values())

    def take(kind: str, taken: list[Product]) -> None:
        turns.append((kind, taken))
        left.difference_update(each.name for each in taken)
        groups[kind] = [each for each in groups[kind] if each.name in left]

    while left:
        before = len(turns)
        for kind, own in groups.items():
            if own and len(ready(own)) == len(own):
                take(kind, own)
        if len(turns) == before:
            take(*next((kind, some) for kind, own in groups.items() if (some := ready(own))))
    return turns
