"""Consecutive sequences with a common prefix are packed with it once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.forward.packing import pack_branches
from vcsoup_dist.forward.prefix_groups import LEAST_SHARED, group_branches, prefix_groups

SYSTEM = list(range(100, 100 + 2 * LEAST_SHARED))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 25),
            st.lists(st.integers(0, 1), min_size=1, max_size=9),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 80),
)
def test_groups_hold_every_sequence_once_within_the_budget_and_share_common_prefixes(drawn, budget):
    # Sequences that begin with a part of one of four prompts.
    sequences = [[10 * prompt + 2] * length + rest for prompt, length, rest in drawn]
    groups = prefix_groups(sequences, budget)
    assert [i for group in groups for i in group.members] == list(range(len(sequences)))
    for group in groups:
        first = sequences[group.first]
        own = 0
        for i, shared in zip(group.members, group.shared, strict=True):
            assert sequences[i][:shared] == first[:shared] and shared < len(sequences[i])
            assert (i == group.first) == (shared == 0) and (not shared or shared >= LEAST_SHARED)
            own += len(sequences[i]) - shared
        assert group.tokens == own and (len(group.shared) == 1 or own <= budget)
    packed = pack_branches(group_branches(groups[::-1], sequences))
    assert packed.input_ids.shape[1] == sum(group.tokens for group in groups)
    row = packed.input_ids[0].numpy()
    seen = row if packed.keys is None else row[packed.keys.numpy()]
    order = [i for group in groups[::-1] for i in group.members]
    for s, i in enumerate(order):
        start, end = packed.cu_seqlens_k[s : s + 2].tolist()
        assert np.array_equal(seen[start:end], sequences[i])


def test_pairs_that_all_begin_with_a_system_prompt_are_grouped_pair_by_pair():
    pairs = [
        [*SYSTEM, *[prompt] * 10, *answer] for prompt in range(3) for answer in ([50, 51], [60])
    ]
    groups = prefix_groups(pairs, 1000)
    assert [group.shared for group in groups] == [(0, len(SYSTEM) + 10)] * 3


def test_several_answers_to_one_prompt_are_one_group():
    answers = [[*SYSTEM, first, 99] for first in range(4)]
    (group,) = prefix_groups(answers, 1000)
    assert group.shared == (0, *[len(SYSTEM)] * 3)


def test_the_same_sequence_twice_keeps_one_token_of_its_own():
    (group,) = prefix_groups([SYSTEM, SYSTEM], 1000)
    assert group.shared == (0, len(SYSTEM) - 1) and group.tokens == len(SYSTEM) + 1
