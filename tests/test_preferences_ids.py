"""The set of ids is exact, and small."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.preferences.id_set import FIRST_SLOTS, IdSet

ids = st.integers(0, 2**64 - 1) | st.integers(0, 5).map(lambda i: i * FIRST_SLOTS)


@given(st.lists(ids))
def test_it_says_what_a_set_says(given):
    found, known = IdSet(), set()
    for each in given:
        assert found.add(each) == (each not in known)
        known.add(each)
        assert len(found) == len(known)
    for each in (*given, 0, 1, FIRST_SLOTS - 1):
        assert (each in found) == (each in known)


def test_it_stays_exact_and_small_as_it_grows():
    draw = random.Random(0)
    known = {draw.getrandbits(64) for _ in range(50_000)}
    found = IdSet()
    assert all(found.add(each) for each in known)
    assert not any(found.add(each) for each in known)
    assert not any(draw.getrandbits(64) in found for _ in range(50_000))
    assert len(found) == 50_000 and found.nbytes <= 18 * 50_000
