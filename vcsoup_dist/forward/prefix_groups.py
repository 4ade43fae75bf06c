"""Groups of consecutive sequences with a common prefix, which a pack holds once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vcsoup_dist.forward.packing import Branch, Ids, common_prefix

LEAST_SHARED = 8
"""Tokens; computing fewer again is cheaper than attention over two parts."""


@dataclass(frozen=True)
class PrefixGroup:
    """Consecutive sequences, all of which begin with a part of the first."""

    first: int
    """Its index."""
    shared: tuple[int, ...]
    """Tokens that each sequence shares with the first; 0 for the first itself."""
    tokens: int
    """Tokens that a pack holds of the group."""

    @property
    def members(self) -> range:
        """Indices of its sequences."""
        return range(self.first, self.first + len(self.shared))


def prefix_groups(sequences: Sequence[Ids], tokens_per_batch: int) -> list[PrefixGroup]:
    """Groups in the order of the sequences, none of several with more than `tokens_per_batch`.

    A sequence joins where it shares enough with the group's first, and no less than with the
    sequence after it: else a prefix of all, such as a system prompt, would hide that of pairs.
    """
    groups: list[PrefixGroup] = []
    for i, ids in enumerate(sequences):
        group = groups[-1] if groups else None
        shared = 0 if group is None else common_prefix(sequences[group.first], ids)
        if group is not None and shared >= LEAST_SHARED:
            tokens = group.tokens + len(ids) - shared
            following = common_prefix(ids, sequences[i + 1]) if i + 1 < len(sequences) else 0
            if tokens <= tokens_per_batch and shared >= min(following, len(ids) - 1):
                groups[-1] = PrefixGroup(group.first, (*group.shared, shared), tokens)
                continue
        groups.append(PrefixGroup(i, (0,), len(ids)))
    return groups


def group_branches(groups: Sequence[PrefixGroup], sequences: Sequence[Ids]) -> list[Branch]:
    """The sequences of groups, group after group, as branches of one pack."""
    branches: list[Branch] = []
    for group in groups:
        first = len(branches)
        for i, shared in zip(group.members, group.shared, strict=True):
            branches.append(Branch(sequences[i], first if shared else -1, shared))
    return branches
