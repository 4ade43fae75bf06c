"""Fewer rows than there are ranks: every rank count against every small row count."""

from __future__ import annotations

import numpy as np
import pytest
from training_world import World, training_of, write_canonical

from vcsoup_dist.recipe import Training
from vcsoup_dist.records.reference import Reference
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.training import batches
from vcsoup_dist.training.batches import micro_batches, step_pairs
from vcsoup_dist.training.schedule import count_steps, passes_warning

MOST_RANKS = 7


def test_a_step_of_fewer_pairs_than_ranks_gives_every_rank_as_many_forwards():
    for ranks in range(1, MOST_RANKS + 1):
        for pairs in range(1, ranks + 2):
            plan = micro_batches([10] * pairs, ranks, 25)
            assert len({len(each) for each in plan}) == 1 and len(plan) == ranks
            dealt = sorted(i for each in plan for batch in each for i in batch)
            assert dealt == list(range(pairs))
            assert sorted(step_pairs(pairs, pairs, 0, 0)) == list(range(pairs))
    assert batches.micro_batches([7], 3, 25).count([[]]) == 2


@pytest.mark.parametrize(
    ("settings", "unfiltered", "pairs", "line"),
    [
        ({"pairs_per_step": 64}, 4, 4, "takes each of only 4 pairs 16 times"),
        ({"pairs_per_step": 64, "steps": 9}, 4, 4, "takes each of only 4 pairs 16 times"),
        ({"pairs_per_step": 16}, 22, 22, "2 whole steps of 16 are 1.45 passes over 22 pairs"),
        ({"pairs_per_step": 16, "equal_steps": False}, 90, 22, "and 1.00 were asked for"),
        ({"pairs_per_step": 16, "steps": 9}, 22, 22, ""),
        ({"pairs_per_step": 16}, 64, 32, ""),  # the filter halved them: two passes, as asked
        ({"pairs_per_step": 16}, 640, 640, ""),
        ({"pairs_per_step": 64}, 10001, 10001, ""),
    ],
)
def test_more_passes_than_were_asked_for_are_one_line(settings, unfiltered, pairs, line):
    training = Training(**settings)
    said = passes_warning(training, unfiltered, pairs, count_steps(training, unfiltered, pairs))
    assert line in said and bool(said) == bool(line)


@pytest.mark.models
@pytest.mark.ranks
def test_three_ranks_train_on_two_pairs_with_one_held_out(tmp_path, tiny_model):
    world = World(tmp_path, tiny_model)
    write_canonical(world.pairs, [world.rows[:2]], world.rows[2:3])
    world.keep("pairs", world.rows[:2])
    world.keep("heldout", world.rows[2:3])
    jobs = [world.reference_job(), world.policy_job("policy", pairs_per_step=2, steps=2)]
    world.run(*jobs, ranks=3)
    tokens = TokenFile(world.tokens(tiny_model, training_of({})))
    assert tokens.id(2) == world.rows[2]["id"]
    reference = Reference(world.root / "reference", tokens)
    assert all((reference.logps(row) < 0).all() for row in range(3))
    measured = world.metrics("policy")
    assert len(measured) == 2 and measured[-1]["heldout_loss"] > 0
    assert measured[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    # The same curve as by one rank.
    alone = world.policy_job("alone", pairs_per_step=2, steps=2)
    world.run(alone, ranks=1)
    assert [each["loss"] for each in world.metrics("alone")] == pytest.approx(
        [each["loss"] for each in measured], abs=1e-5
    )
