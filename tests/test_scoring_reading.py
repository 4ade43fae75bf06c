"""Raw rows end up in exactly one place: among the training pairs, held out, rejected or counted."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.errors import UserError
from vcsoup_dist.evaluation.prompts import Prompt, choose_prompts, seen_in_training
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Pair, pair_id, prompt_id, split_hash
from vcsoup_dist.records.pairs import (
    HELD_OUT,
    PairsFile,
    PairSlice,
    PairsManifest,
    cut_rows,
    overlapping_groups,
    read_slice,
)
from vcsoup_dist.scoring import reading
from vcsoup_dist.scoring.reading import Source, write_pairs


def pair(prompt: int, answer: int = 0) -> Pair:
    messages = [{"role": "user", "content": f"question {prompt}"}]
    chosen = f"answer {answer}"
    return Pair(pair_id(messages, chosen, "none"), messages, chosen, "none", {"s": float(prompt)})


def source(rows, name: str = "data") -> Source:
    return Source(name, enumerate(rows, start=1))


def write(folder: Path, train: Source, heldout: Source | None = None, **changed):
    folder.mkdir(exist_ok=True)
    settings = {"heldout_share": 0.2, "limit": None, "max_bad_rows": 0.5}
    return write_pairs(folder, train, heldout, columns=["s"], **(settings | changed))


def prompts_in(folder: Path, files: str) -> list[str]:
    tables = [pq.read_table(file) for file in sorted(folder.glob(files))]
    return [row["prompt"][0]["content"] for table in tables for row in table.to_pylist()]


def test_rows_are_split_by_prompt_and_none_is_lost(tmp_path: Path):
    rows = [pair(i, answer) for i in range(300) for answer in (1, 2)]
    rows += [pair(3, 1), pair(4, 2)]
    rows[10:10] = [BadRow("empty response"), BadRow("wrong roles"), BadRow("empty response")]
    manifest = write(tmp_path, source(rows))
    train, heldout = prompts_in(tmp_path, "train-*.parquet"), prompts_in(tmp_path, HELD_OUT)
    assert not set(train) & set(heldout)
    assert sorted(train + heldout) == sorted(f"question {i}" for i in range(300) for _ in "ab")
    assert 0.13 < len(heldout) / 600 < 0.27
    assert manifest.rejected == {"empty response": 2, "wrong roles": 1}
    assert len(train) + len(heldout) + 3 + manifest.duplicates == manifest.rows == 605
    assert (manifest.train, manifest.heldout) == (len(train), len(heldout))
    assert manifest.files == [PairsFile("train-00000.parquet", len(train))]
    assert PairsManifest.read(tmp_path) == manifest
    rejected = pq.read_table(tmp_path / "rejected_rows.parquet").to_pylist()
    assert [row["row"] for row in rejected] == [11, 12, 13]


def test_a_prompt_of_the_heldout_file_is_not_trained_on(tmp_path: Path):
    heldout = source([pair(1), pair(2), pair(1), BadRow("x")], "heldout")
    rows = [pair(i, answer) for i in range(5) for answer in (0, 1)]
    manifest = write(tmp_path, source(rows), heldout)
    assert prompts_in(tmp_path, HELD_OUT) == ["question 1", "question 2"]
    assert prompts_in(tmp_path, "train*") == [f"question {i}" for i in (0, 0, 3, 3, 4, 4)]
    assert (manifest.heldout_in_train, manifest.heldout_in_train_pairs) == (2, 4)
    assert manifest.duplicates == 1 and manifest.rows == 14


def test_the_limit_counts_training_pairs_and_stops_reading(tmp_path: Path):
    def rows():
        for i in range(1000):
            assert i < 100
            yield pair(i)

    manifest = write(tmp_path, source(rows()), limit=20)
    assert manifest.train == 20 and manifest.rows == 20 + manifest.heldout


def test_the_same_rows_give_the_same_bytes(tmp_path: Path):
    for name in "ab":
        write(tmp_path / name, source([*(pair(i) for i in range(30)), BadRow("x", "text")]))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_too_many_bad_rows_are_refused_with_share_reason_and_row(tmp_path: Path):
    rows = [pair(0), BadRow("wrong roles"), BadRow("empty response"), BadRow("empty response")]
    with pytest.raises(UserError) as refused:
        write(tmp_path, source([*rows, *(pair(i) for i in range(1, 7))]), max_bad_rows=0.2)
    for part in ("data: 3 of 10 rows (30.0%)", "empty response, first in row 3", "max_bad_rows"):
        assert part in str(refused.value)
    write(tmp_path, source([*rows, *(pair(i) for i in range(1, 7))]), max_bad_rows=0.3)


def test_bad_rows_are_judged_among_those_that_should_make_a_pair(tmp_path: Path):
    rows = [BadRow("x"), *map(pair, range(9)), *[None] * 5, *[LeftOut("tie")] * 85]
    with pytest.raises(UserError, match=r"1 of 10 rows \(10.0%\) .*\(90 other rows are ties"):
        write(tmp_path, source(rows), max_bad_rows=0.05)
    write(tmp_path, source(rows), max_bad_rows=0.1)


def test_rows_that_make_no_pair_are_counted_but_not_judged(tmp_path: Path, caplog):
    rows = [LeftOut("tie"), None, pair(0), LeftOut("alone"), LeftOut("tie"), BadRow("x"), pair(1)]
    train = source([*rows, *(pair(i) for i in range(2, 5))])
    train.tally["returned_prompts"] = 3
    with caplog.at_level("INFO", "vcsoup"):
        manifest = write(tmp_path, train, source([pair(9), LeftOut("tie")]), max_bad_rows=0.2)
    assert manifest.left_out == {"alone": 1, "tie": 3}
    assert (manifest.joined, manifest.returned_prompts) == (1, 3)
    placed = manifest.train + manifest.heldout + manifest.joined
    assert placed + sum(manifest.left_out.values()) + 1 == manifest.rows == 12
    assert pq.read_table(tmp_path / "rejected_rows.parquet").num_rows == 1
    said = [record.message for record in caplog.records]
    assert "data: 3 of 10 rows make no pair: 2 tie, 1 alone" in said
    assert sum("3 times a prompt comes back" in each for each in said) == 1


def test_a_dataset_that_only_has_ties_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="of 2 rows none is left to train on; 2: tie by `x`"):
        write(tmp_path, source([LeftOut("tie by `x`")] * 2))


def test_a_dataset_without_training_pairs_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="of 1 rows none is left to train on"):
        write(tmp_path, source([pair(1)]), source([pair(1)]))


def test_slices_give_back_the_pairs_in_order(tmp_path: Path):
    heldout = [pair(i) for i in range(600)]
    train = [pair(i) for i in range(600, 1200)]
    write(tmp_path, source(train), source(heldout))
    for file, pairs in (("train-00000.parquet", train), (HELD_OUT, heldout)):
        slices = cut_rows(tmp_path / file, len(pairs), 250)
        assert [part.rows for part in slices] == [250, 250, 100]
        assert [p for part in slices for p in read_slice(part)] == pairs


def test_training_pairs_are_in_files_of_a_size_and_read_in_pieces(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(reading, "FILE_PAIRS", 1200)
    train = [pair(i) for i in range(2500)]
    manifest = write(tmp_path, source(train), source([pair(2500)]))
    assert [each.rows for each in manifest.files] == [1200, 1200, 100]
    assert sorted(file.name for file in tmp_path.glob("train-*")) == [
        each.file for each in manifest.files
    ]
    second = pq.ParquetFile(tmp_path / manifest.files[1].file).metadata
    assert [second.row_group(i).num_rows for i in range(second.num_row_groups)] == [512, 512, 176]
    for first, rows in ((0, 1), (511, 2), (600, 600), (1199, 1)):
        part = PairSlice(tmp_path / manifest.files[1].file, first, rows)
        assert read_slice(part) == train[1200 + first : 1200 + first + rows]


@given(st.integers(0, 5000), st.integers(1, 6000))
def test_slices_cover_all_rows_once_in_order(rows: int, most: int):
    slices = cut_rows(Path("file"), rows, most)
    assert [row for each in slices for row in range(each.first, each.first + each.rows)] == [
        *range(rows)
    ]
    assert all(0 < each.rows <= most for each in slices)
    assert all(each.rows == most for each in slices[:-1])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.data())
def test_just_the_row_groups_that_hold_a_slice_are_read(sizes: list[int], data: st.DataObject):
    total = sum(sizes)
    first = data.draw(st.integers(0, total - 1))
    rows = data.draw(st.integers(1, total - first))
    groups, skipped = overlapping_groups(sizes, first, rows)
    group_of = [number for number, size in enumerate(sizes) for _ in range(size)]
    assert groups == sorted(set(group_of[first : first + rows]))
    read = [row for row in range(total) if group_of[row] in groups]
    assert read[skipped : skipped + rows] == [*range(first, first + rows)]


def test_evaluation_prompts_have_the_ids_of_their_pairs(tmp_path: Path):
    write(tmp_path, source([pair(i) for i in range(300)]))
    prompts = choose_prompts({"a": tmp_path}, 20)
    held_out = pq.read_table(tmp_path / HELD_OUT).to_pylist()
    prompt_of = {row["prompt_id"]: row["prompt"] for row in held_out}
    assert [each.id for each in prompts] == sorted(prompt_of)[:20]
    assert all(prompt_of[each.id] == each.messages for each in prompts)
    assert seen_in_training(prompts, {"a": tmp_path}) == {}
    trained = pq.read_table(tmp_path / "train-00000.parquet")["prompt_id"].to_pylist()[0]
    seen = [Prompt(trained, "b", []), *prompts]
    assert seen_in_training(seen, {"a": tmp_path}) == {"a": [trained]}


def test_what_is_held_out_and_what_is_evaluated_of_it_are_decided_apart():
    prompts = [[{"role": "user", "content": f"question {i}"}] for i in range(2000)]
    low = [prompt_id(each) for each in prompts if split_hash(each) < 0.1 * 2**64]
    assert 140 < len(low) < 260
    assert 0.35 < sum(each[0] < "8" for each in low) / len(low) < 0.65
