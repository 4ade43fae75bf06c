"""What is found shard by shard is what plain numpy finds of all pairs at once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from consistency_world import Scored, draw_scored, write_pair_files, write_score_files
from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.consistency import filtered_files
from vcsoup_dist.consistency.blocks import Block, ids_as_numbers, training_blocks
from vcsoup_dist.consistency.counts import count_pairs
from vcsoup_dist.consistency.filtered_files import (
    HeldOutPart,
    Part,
    filtered_tables,
    write_heldout,
)
from vcsoup_dist.consistency.gaps import consistency, norm
from vcsoup_dist.consistency.measured_pairs import GapSettings, measure_pairs
from vcsoup_dist.consistency.rules import keep
from vcsoup_dist.consistency.scales import Scale, check_scale, reward_scale
from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.task_map import run_here
from vcsoup_dist.moments import co_moments, moments
from vcsoup_dist.records.keep_rule import KeepRule

NORMALISATIONS = ["zscore", "gap_std", "robust", "none"]
RULES = [
    KeepRule("all"),
    KeepRule("threshold", 0.3),
    KeepRule("ratio", ratio=0.3),
    KeepRule("all_positive"),
    KeepRule("random", ratio=0.4),
    KeepRule("as_many_as"),
]


def ignore(pairs: float) -> None:
    """Nobody looks at the progress."""


def write_blocks(folder: Path, dataset: str, scored: Scored, file_pairs: int = 7) -> list[Block]:
    """A block for each file."""
    folders = [folder / dataset / f"v{j}" for j in range(scored.chosen.shape[1])]
    pairs = folder / dataset / "pairs"
    for each in (pairs, *folders):
        each.mkdir(parents=True)
    write_pair_files(pairs, scored, file_pairs)
    for j, each in enumerate(folders):
        write_score_files(each, scored, j, file_pairs)
    return training_blocks(dataset, pairs, folders)


def plain_scale(parts: list[Scored], normalisation: str) -> np.ndarray:
    """By its definition, of the pairs that have the reward."""
    found = []
    for j in range(parts[0].chosen.shape[1]):
        chosen = np.concatenate([part.chosen[:, j] for part in parts])
        rejected = np.concatenate([part.rejected[:, j] for part in parts])
        there = ~np.isnan(chosen)
        chosen, rejected = chosen[there], rejected[there]
        pooled = np.concatenate([chosen, rejected])
        found.append(
            {
                "zscore": pooled.std(),
                "gap_std": (chosen - rejected).std(),
                "robust": 1.4826 * np.median(np.abs(pooled - np.median(pooled))),
                "none": 1.0,
            }[normalisation]
        )
    return np.array(found)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("together", [False, True])
def test_scales_over_shards_are_those_of_all_numbers_at_once(
    tmp_path: Path, normalisation, together
):
    parts = [draw_scored(seed, 60, 3) for seed in (1, 2)]
    blocks = [write_blocks(tmp_path, name, part) for name, part in zip("ab", parts, strict=True)]
    trained = [part.train for part in parts]
    if together:
        found = [reward_scale([*blocks[0], *blocks[1]], normalisation, run_here, ignore).s]
        expected = [plain_scale(trained, normalisation)]
    else:
        found = [reward_scale(each, normalisation, run_here, ignore).s for each in blocks]
        expected = [plain_scale([each], normalisation) for each in trained]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


def test_a_reward_that_never_varies_or_is_never_there_is_refused_by_name(tmp_path: Path):
    scored = draw_scored(0, 40, 3, missing=0)
    scored.chosen[:, 1] = scored.rejected[:, 1] = 0.1  # no sum of tenths is exact
    scored.chosen[:, 2] = scored.rejected[:, 2] = np.nan
    blocks = write_blocks(tmp_path, "a", scored)
    scale = reward_scale(blocks, "zscore", run_here, ignore)
    assert scale.s[0] > 0 and scale.s[1] == 0 and np.isnan(scale.s[2])
    with pytest.raises(UserError, match=r"values.y.reward: its spread \(zscore\) is 0 over it but"):
        check_scale(scale, ["x", "y", "z"], "zscore", "it")
    with pytest.raises(UserError, match=r"values.z.reward: no pair of it has one"):
        check_scale(Scale(scale.s[::2], scale.spread[::2]), ["x", "z"], "zscore", "it")


numbers = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=1, max_size=40)


@given(numbers, st.lists(st.integers(0, 40), max_size=4), st.floats(-1e3, 1e3))
def test_moments_of_parts_merge_to_those_of_the_whole(column, cuts, offset):
    column = np.array(column)[:, None] + offset
    whole = moments(column[:0])
    for part in np.split(column, sorted(cuts)):
        whole = whole.merged(moments(part))
    assert whole.count[0] == len(column)
    assert whole.mean[0] == pytest.approx(column.mean(), rel=1e-12, abs=1e-11)
    assert whole.std()[0] == pytest.approx(column.std(), rel=1e-12, abs=1e-11)


@given(st.integers(0, 2**32), st.integers(2, 60), st.lists(st.integers(0, 60), max_size=4))
def test_co_moments_of_parts_merge_to_numpys_correlation(seed, rows, cuts):
    draw = np.random.default_rng(seed)
    columns = draw.standard_normal((rows, 3)) @ draw.standard_normal((3, 3))
    whole = co_moments(columns[:0])
    for part in np.split(columns, sorted(cuts)):
        whole = whole.merged(co_moments(part))
    np.testing.assert_allclose(whole.correlation(), np.corrcoef(columns.T), atol=1e-9)


def test_the_correlation_with_a_constant_is_undefined():
    columns = np.array([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]])
    assert co_moments(columns).correlation() == [[1.0, None], [None, None]]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.integers(0, 5), st.integers(0, 5))
def test_ids_are_their_hex_digits_as_numbers_also_of_a_slice(ids, first, last):
    column = pa.array([f"{i:016x}" for i in ids], pa.string())
    part = slice(first, max(first, len(ids) - last))
    assert ids_as_numbers(column[part]).tolist() == ids[part]
    halves = pa.chunked_array([column[:first], column[first:]])
    assert ids_as_numbers(halves).tolist() == ids


def plain_filter(
    parts: dict[str, Scored],
    scale: np.ndarray,
    own: int | None,
    rule: KeepRule,
) -> tuple[list[dict], dict[str, int]]:
    """The pairs that a rule keeps, one by one, and how many are dropped why.

    Of a random choice only who may be chosen: those pairs are all given back.
    """
    seen: set[int] = set()
    usable, eligible = [], []
    dropped = dict.fromkeys(
        ("prompt held out in another dataset", "answers compared before", "no reward",
         "tie of its own reward", "zero gap", "below min_norm"), 0
    )  # fmt: skip
    for dataset, scored in parts.items():
        for i, chosen, rejected in zip(
            scored.ids.tolist(), scored.chosen, scored.rejected, strict=True
        ):
            g = [float((w - r) / s) for w, r, s in zip(chosen, rejected, scale, strict=True)]
            again = i in seen
            seen.add(i)
            if again:
                dropped["answers compared before"] += 1
                continue
            if any(math.isnan(x) for x in g):
                dropped["no reward"] += 1
                continue
            if own is not None and g[own] == 0:
                dropped["tie of its own reward"] += 1
                continue
            swapped = own is not None and g[own] < 0
            g = [-x if swapped else x for x in g]
            # To the last bit, which decides between the best; their own tests are elsewhere.
            cosine, length = (float(of(np.array([g]))[0]) for of in (consistency, norm))
            pair = {"id": i, "g": g, "c": cosine, "swapped": swapped, "dataset": dataset}
            usable.append(pair | {"norm": length})
            if length == 0:
                dropped["zero gap"] += 1
            elif length < rule.min_norm:
                dropped["below min_norm"] += 1
            else:
                eligible.append(usable[-1])
    if rule.kind == "all":
        return usable, {k: v for k, v in dropped.items() if k not in ("zero gap", "below min_norm")}
    if rule.kind == "threshold":
        return [p for p in eligible if p["c"] >= rule.threshold - 1e-12], dropped
    if rule.kind == "all_positive":
        return [p for p in eligible if all(x > 0 for x in p["g"])], dropped
    if rule.kind == "ratio":
        ranked = sorted(eligible, key=lambda p: (-p["c"], p["id"]))
        count = min(len(ranked), max(1, math.floor(rule.ratio * len(ranked) + 0.5)))
        chosen_ids = {p["id"] for p in ranked[:count]}
        return [p for p in eligible if p["id"] in chosen_ids], dropped
    return eligible, dropped


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "values", [1, 2, 3, *(pytest.param(each, marks=LONG) for each in (4, 5)), 6]
)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("borrowing", [False, True])
def test_every_rule_keeps_of_shards_what_it_keeps_pair_by_pair(
    tmp_path: Path, values, normalisation, borrowing
):
    parts = {name: draw_scored(seed, 46, values) for seed, name in enumerate("ab")}
    if borrowing:
        parts["b"].ids[3:7] = parts["a"].ids[20:24]  # four pairs are in both
    blocks = [
        each for name, part in parts.items() for each in write_blocks(tmp_path, name, part, 11)
    ]
    trained = {name: part.train for name, part in parts.items()}
    scale = reward_scale(blocks, normalisation, run_here, ignore)
    own = values - 1 if borrowing else None
    for min_norm in (0.0, 1.0):
        settings = [GapSettings(scale, own, min_norm)] * len(blocks)
        measured = measure_pairs(blocks, settings, run_here, ignore, sample=30)
        missing = [np.isnan(part.chosen).any(axis=1).sum() for part in trained.values()]
        assert measured.unscored == sum(missing)
        assert len(measured.sample) <= 30 and not np.isnan(measured.sample).any()
        for rule in (replace(each, min_norm=min_norm) for each in RULES):
            kept = keep(rule, measured.columns, values, 5)
            expected, dropped = plain_filter(trained, scale.s, own, rule)
            found = measured.columns.ids[kept].tolist()
            if rule.kind in ("random", "as_many_as"):
                assert set(found) < {pair["id"] for pair in expected}
                share = math.floor(0.4 * len(expected) + 0.5)
                assert len(found) == (share if rule.kind == "random" else 5)
            else:
                assert found == [pair["id"] for pair in expected]
                counts = count_pairs(measured, kept, rule, values)
                assert {k: v for k, v in counts.dropped.items() if k != "by rule"} == dropped
                assert counts.kept + sum(counts.dropped.values()) == counts.pairs


def test_kept_pairs_are_written_as_they_are_read_one_by_one(tmp_path: Path):
    parts = {name: draw_scored(seed, 60, 3) for seed, name in enumerate("ab")}
    blocks = [each for name, part in parts.items() for each in write_blocks(tmp_path, name, part)]
    scale = np.array([2.0, 3.0, 5.0])
    settings = GapSettings(Scale(scale, scale), 2, 0.0)
    measured = measure_pairs(blocks, [settings] * len(blocks), run_here, ignore)
    rule = KeepRule("threshold", 0.1)
    kept = keep(rule, measured.columns, 3)
    rows, first = [], 0
    for block in blocks:
        part = Part(block, settings, kept[first : first + block.rows], ("x", "y", "z"))
        rows += [row for table in filtered_tables(part) for row in table.to_pylist()]
        first += block.rows
    trained = {name: part.train for name, part in parts.items()}
    expected, _ = plain_filter(trained, scale, 2, rule)
    assert len(rows) == len(expected) and {pair["swapped"] for pair in expected} == {True, False}
    for row, pair in zip(rows, expected, strict=True):
        i, sides = pair["id"], ["chosen", "rejected"][:: -1 if pair["swapped"] else 1]
        assert row == {
            "id": f"{i:016x}",
            "prompt": [{"role": "user", "content": f"prompt {i}"}],
            "chosen": [{"role": "assistant", "content": f"{sides[0]} {i}"}],
            "rejected": [{"role": "assistant", "content": f"{sides[1]} {i}"}],
            "dataset": pair["dataset"],
            "swapped": pair["swapped"],
            "consistency": pytest.approx(pair["c"]),
            "norm": pytest.approx(pair["norm"]),
            **{f"gap_{v}": g for v, g in zip("xyz", pair["g"], strict=True)},
        }


def test_held_out_pairs_come_in_the_order_of_their_ids_whatever_fits_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parts = {name: draw_scored(seed, 40, 2, missing=0) for seed, name in enumerate("ab")}
    blocks = [each for name, part in parts.items() for each in write_blocks(tmp_path, name, part)]
    kept = [np.arange(block.rows) % 3 > 0 for block in blocks]
    taken = [HeldOutPart(*each, each[1]) for each in zip(blocks, kept, strict=True)]
    write_heldout(tmp_path / "whole.parquet", taken)
    reads = []
    preferences = filtered_files._preferences

    def counted(block: Block, *masks):
        reads.append(block)
        return preferences(block, *masks)

    monkeypatch.setattr(filtered_files, "_preferences", counted)
    monkeypatch.setattr(filtered_files, "SORTED_BYTES", 1000)
    monkeypatch.setattr(filtered_files, "ROWS", 3)
    write_heldout(tmp_path / "ranges.parquet", taken)
    assert reads == blocks  # once each, however many ranges of ids
    assert pq.ParquetFile(tmp_path / "ranges.parquet").num_row_groups > 10
    assert {file.name for file in tmp_path.glob("*ranges*")} == {"ranges.parquet"}
    whole, ranges = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("whole", "ranges"))
    assert whole.to_pylist() == ranges.to_pylist()
    assert whole.num_rows == sum(mask.sum() for mask in kept)
    assert all(whole["swapped"].to_pylist()) and "consistency" not in whole.column_names
    assert whole["id"].to_pylist() == sorted(whole["id"].to_pylist())
