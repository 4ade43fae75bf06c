"""Files with fewer rows than there are ranks: every rank count against every small row count."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import sentence
from training_world import World
from transformers import AutoTokenizer

from vcsoup_dist.recipe import Training
from vcsoup_dist.records.pairs import pairs_schema
from vcsoup_dist.records.reference import ReferenceLogps, read_references, write_reference
from vcsoup_dist.training import batches, examples, reference
from vcsoup_dist.training.batches import micro_batches, step_pairs
from vcsoup_dist.training.examples import (
    EncodedRow,
    encode_files,
    make_examples,
    tokens_hash,
)
from vcsoup_dist.training.schedule import count_steps, passes_warning

MOST_RANKS = 7
TRAINING = Training(max_length=64)


def rows(count: int) -> list[dict]:
    draw = random.Random(count)
    return [
        {
            "id": f"{i:04d}",
            "prompt_id": str(i),
            "answers_id": str(i),
            "prompt": [{"role": "user", "content": sentence(draw)}],
            "chosen": sentence(draw),
            "rejected": sentence(draw) + " no",
        }
        for i in range(count)
    ]


def write(path: Path, count: int) -> Path:
    pq.write_table(pa.Table.from_pylist(rows(count), schema=pairs_schema([])), path)
    return path


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def on_ranks(monkeypatch):
    """Call a function once per rank, each in a thread that knows its rank; results by rank."""
    here = threading.local()

    def run(world: int, work) -> list:
        together = threading.Barrier(world, timeout=20)
        said = [None] * world
        results, errors = [None] * world, []

        def gather(mine):
            said[here.rank] = mine
            together.wait()
            found = list(said)
            together.wait()
            return found

        def rank(number: int) -> None:
            here.rank = number
            try:
                results[number] = work()
            except Exception as error:
                errors.append(error)
                together.abort()

        for module in (examples, reference):
            monkeypatch.setattr(module.dist, "get_rank", lambda: here.rank)
            monkeypatch.setattr(module.dist, "get_world_size", lambda: world)
        monkeypatch.setattr(examples, "gather_to_all", gather)
        threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        if errors:
            raise errors[0]
        return results

    return run


@pytest.mark.parametrize("world", range(1, MOST_RANKS + 1))
def test_every_rank_has_every_row_however_few_there_are(world, tokenizer, on_ranks, tmp_path):
    for count in range(world + 2):
        file = write(tmp_path / f"{count}.parquet", count)
        found = on_ranks(world, lambda file=file: encode_files([file], tokenizer, TRAINING))
        expected = [row["id"] for row in rows(count)]
        assert all([row.id for row in each] == expected for each in found)
        for limit in (1, 2, world):
            first = on_ranks(
                world,
                lambda file=file, limit=limit: encode_files([file], tokenizer, TRAINING, limit),
            )
            assert all([row.id for row in each] == expected[:limit] for each in first)


def test_a_batch_that_is_shorter_than_the_ranks_ends_a_longer_file(
    tokenizer, on_ranks, tmp_path, monkeypatch
):
    monkeypatch.setattr(examples, "ROWS", 4)  # rows in memory at a time
    file = write(tmp_path / "pairs.parquet", 9)
    for world in range(1, MOST_RANKS + 1):
        found = on_ranks(world, lambda: encode_files([file, file], tokenizer, TRAINING))
        assert all([row.id for row in each] == [row["id"] for row in rows(9)] * 2 for each in found)


def test_a_step_of_fewer_pairs_than_ranks_gives_every_rank_as_many_forwards():
    for ranks in range(1, MOST_RANKS + 1):
        for pairs in range(1, ranks + 2):
            plan = micro_batches([10] * pairs, ranks, 25)
            assert len({len(each) for each in plan}) == 1 and len(plan) == ranks
            dealt = sorted(i for each in plan for batch in each for i in batch)
            assert dealt == list(range(pairs))
            assert sorted(step_pairs(pairs, pairs, 0, 0)) == list(range(pairs))
    assert batches.micro_batches([7], 3, 25).count([[]]) == 2


def test_references_of_files_of_no_row_and_of_one_are_found_again(tokenizer, tmp_path):
    for count in (0, 1, 2):
        file = write(tmp_path / f"{count}.parquet", count)
        pairs = [
            EncodedRow(row["id"], pair, False, None)
            for row in pq.read_table(file).to_pylist()
            for pair in [examples._encode_row(tokenizer, row, TRAINING).pair]
        ]
        logps = [
            ReferenceLogps(
                tokens_hash(*row.pair),
                *(
                    np.full(each.answer_length, -1.5 - i, dtype=np.float32)
                    for i, each in enumerate(row.pair)
                ),
            )
            for row in pairs
        ]
        folder = tmp_path / f"reference-{count}"
        folder.mkdir()
        ids = [row.id for row in pairs]
        write_reference(folder / "train-00000.parquet", ids, logps)
        known = read_references([folder], set(ids))
        assert {id_: each.tokens for id_, each in known.items()} == {
            row.id: tokens_hash(*row.pair) for row in pairs
        }
        made, unusable = make_examples(pairs, known, TRAINING)
        assert len(made) == count and not unusable
        assert all((each.reference_rejected == -2.5).all() for each in made)


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
    for folder in (world.pairs, world.filtered):
        for file in folder.glob("*.parquet"):
            file.unlink()
    kept = [world._swapped(world.rows[0]), world._kept(world.rows[1])]
    held = [world._kept(world.rows[2])]
    plain = [pa.Table.from_pylist(part) for part in (world.rows[:2], world.rows[2:3])]
    pq.write_table(plain[0], world.pairs / "train-00000.parquet")
    pq.write_table(plain[1], world.pairs / "heldout.parquet")
    pq.write_table(pa.Table.from_pylist(kept), world.filtered / "pairs.parquet")
    pq.write_table(pa.Table.from_pylist(held), world.filtered / "heldout.parquet")
    jobs = [world.reference_job(), world.policy_job("policy", pairs_per_step=2, steps=2)]
    world.run(*jobs, ranks=3)
    cached = pq.read_table(world.root / "reference" / "heldout-00000.parquet")
    assert cached["id"].to_pylist() == [world.rows[2]["id"]]
    assert cached["chosen"][0].as_py()
    measured = world.metrics("policy")
    assert len(measured) == 2 and measured[-1]["heldout_loss"] > 0
    assert measured[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    # The same curve as by one rank.
    alone = world.policy_job("alone", pairs_per_step=2, steps=2)
    world.run(alone, ranks=1)
    assert [each["loss"] for each in world.metrics("alone")] == pytest.approx(
        [each["loss"] for each in measured], abs=1e-5
    )
