"""Preference data with a chosen share of conflicting pairs, from the demo's generated world.

Two values, `complete` and `short`, both known exactly. A pair is taught by one of them, its own,
and conflicts if the other value's exact gap has the opposite sign. Pairs on which the other value
is indifferent are neither, and left out. No label is wrong, so that the share is exact and nothing
but conflict changes along it. What changes too is the size of gaps: pairs that conflict and pairs
that agree are each taken as the world has them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.demo.pairs import VALUES as REWARDS
from vcsoup_dist.demo.pairs import Pair, draw_pairs, write_pairs

VALUES = ("complete", "short")
POOL = 2000
"""Pairs per value from which a data set is drawn."""


def own_gap(pair: Pair, value: str) -> float:
    """r(chosen) - r(rejected) by the exact reward of `value`."""
    reward = REWARDS[value]
    return reward(pair.prompt, pair.chosen) - reward(pair.prompt, pair.rejected)


def conflicts(pair: Pair) -> bool | None:
    """Whether the two values prefer different answers; None where one prefers neither."""
    first, second = (own_gap(pair, value) for value in VALUES)
    return None if first * second == 0 else first * second < 0


def draw_with_share(value: str, pairs: int, share: float, seed: str) -> list[Pair]:
    """`pairs` pairs with distinct prompts, `share` of them conflicting, in random order.

    The same seed always gives the same pairs. ValueError where the pool holds too few.
    """
    rng = random.Random(seed)
    pool = draw_pairs(value, POOL, rng, for_test=False, noise=0.0)
    conflicting = round(share * pairs)
    drawn = _draw(pool, True, conflicting, rng) + _draw(pool, False, pairs - conflicting, rng)
    rng.shuffle(drawn)
    return drawn


def _draw(pool: Sequence[Pair], conflict: bool, count: int, rng: random.Random) -> list[Pair]:
    those = [pair for pair in pool if conflicts(pair) is conflict]
    if count > len(those):
        kind = "conflicting" if conflict else "agreeing"
        raise ValueError(f"{count} {kind} pairs are more than the {len(those)} of the pool")
    return rng.sample(those, count)


def write_data(folder: Path, pairs: int, share: float, seed: int) -> None:
    """`<value>_train.jsonl` of every value; seed and share decide the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for value in VALUES:
        drawn = draw_with_share(value, pairs, share, f"conflict/{seed}/{share}/{value}")
        write_pairs(drawn, value, folder / f"{value}_train.jsonl")


def write_held_out(folder: Path, pairs: int) -> None:
    """`<value>_test.jsonl` of every value, as the world has them: one for all shares and seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    for value in VALUES:
        rng = random.Random(f"conflict/held-out/{value}")
        drawn = draw_pairs(value, pairs, rng, for_test=True, noise=0.0)
        write_pairs(drawn, value, folder / f"{value}_test.jsonl")
