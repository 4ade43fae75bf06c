"""The token file and the reference log-probs of its pairs, against plain Python lists."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answers import pair_tokens
from vcsoup_dist.forward.template import Encoded, Unusable
from vcsoup_dist.records.filter_report import FilterReport, HeldOut, PairCounts, RuleComparison
from vcsoup_dist.records.keep_rule import KeepRule
from vcsoup_dist.records.pairs import PairsFile
from vcsoup_dist.records.pairs_read import PairsRead
from vcsoup_dist.records.reference import (
    LOGPS,
    PartDraft,
    PartManifest,
    Reference,
    begin_part,
    part_folders,
    part_name,
)
from vcsoup_dist.records.tokens import (
    TOKENS,
    PairTokens,
    TokenFile,
    TokensManifest,
    join_parts,
    write_part,
)
from vcsoup_dist.training.examples import NO_ANSWER, Examples
from vcsoup_dist.training.reference_rows import parts_to_compute, rows_read
from vcsoup_dist.training.selection import (
    consistency_weights,
    select_all,
    select_filtered,
)


@st.composite
def encoded_pairs(draw) -> PairTokens:
    """A pair with a common prompt, or one that cannot be used."""
    unusable = draw(st.sampled_from([*Unusable, *[None] * 6]))
    if unusable is not None:
        reason = "it says no" if unusable is Unusable.REFUSED else None
        return PairTokens(unusable, reason)
    ids = st.integers(0, 2**31 - 1)
    prompt = draw(st.lists(ids, min_size=1, max_size=6))
    answers = [draw(st.lists(ids, min_size=1, max_size=5)) for _ in range(2)]
    chosen, rejected = (Encoded([*prompt, *each], len(prompt)) for each in answers)
    return PairTokens((chosen, rejected))


Parts = list[list[PairTokens]]
PARTS = st.lists(st.lists(encoded_pairs(), max_size=5), max_size=4)


def random_parts(seed: int, *sizes: int) -> Parts:
    """Usable pairs but for every fourth."""
    draw = random.Random(seed)

    def one(i: int) -> PairTokens:
        if i % 4 == 3:
            return (
                PairTokens(Unusable.REFUSED, f"no {i}") if i % 8 == 7 else PairTokens(Unusable.SAME)
            )
        prompt = draw.choices(range(50), k=draw.randint(1, 9))
        chosen, rejected = (
            Encoded([*prompt, *draw.choices(range(50), k=draw.randint(1, 9))], len(prompt))
            for _ in range(2)
        )
        return PairTokens((chosen, rejected))

    return [[one(i) for i in range(size)] for size in sizes]


def write(folder: Path, train: Parts, heldout: Parts) -> TokenFile:
    """The token file of parts, whose pairs are called by their number."""
    folder.mkdir(parents=True, exist_ok=True)
    files, number = [], 0
    for part in (*train, *heldout):
        files.append(folder / f"part-{len(files)}")
        write_part(files[-1], [f"{number + i:x}" for i in range(len(part))], part)
        number += len(part)
    join_parts(folder, files[: len(train)], files[len(train) :])
    return TokenFile(folder)


def as_lists(side: Encoded) -> tuple[list[int], int]:
    return [int(each) for each in side.ids], side.start


@settings(max_examples=25)
@given(train=PARTS, heldout=PARTS)
def test_what_is_written_in_parts_is_read_row_by_row(tmp_path_factory, train, heldout):
    file = write(tmp_path_factory.mktemp("tokens"), train, heldout)
    pairs = [pair for part in (*train, *heldout) for pair in part]
    assert file.manifest.train == sum(map(len, train))
    assert file.manifest.heldout == sum(map(len, heldout))
    before, costs = 0, []
    for row, each in enumerate(pairs):
        assert file.id(row) == f"{row:x}"
        assert file.answers_before(row) == before
        if isinstance(each.pair, Unusable):
            costs.append(0)
            continue
        assert [as_lists(side) for side in file.pair(row)] == [as_lists(side) for side in each.pair]
        costs.append(pair_tokens(*each.pair))
        before += sum(len(side.ids) - side.start for side in each.pair)
    assert file.manifest.answer_tokens == before
    for first in range(len(pairs) + 1):
        assert list(file.costs(first)) == costs[first:]
    table = file.table(["unusable", "reason"])
    assert table["unusable"].to_pylist() == [
        str(each.pair) if isinstance(each.pair, Unusable) else None for each in pairs
    ]
    assert table["reason"].to_pylist() == [each.reason for each in pairs]


def test_the_digest_knows_every_token_and_start_and_no_ids(tmp_path):
    parts = random_parts(0, 5, 3)
    digest = write(tmp_path / "a", parts, []).manifest.digest
    assert write(tmp_path / "b", parts, []).manifest.digest == digest
    chosen, rejected = parts[1][0].pair
    for name, pair in {
        "token": (Encoded([*chosen.ids[:-1], 51], chosen.start), rejected),
        "start": (Encoded(chosen.ids, chosen.start + 1), rejected),
        "sides": (rejected, chosen),
    }.items():
        changed = [parts[0], [PairTokens(pair), *parts[1][1:]]]
        assert write(tmp_path / name, changed, []).manifest.digest != digest


@pytest.mark.parametrize("harm", ["cut", "missing", "other rows", "other file"])
def test_a_damaged_token_file_is_one_line(tmp_path, harm):
    folder = tmp_path / "tokens"
    write(folder, random_parts(0, 5, 3), [])
    file = folder / TOKENS
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif harm == "missing":
        file.unlink()
    elif harm == "other rows":
        dataclasses.replace(TokensManifest.read(folder), parts=[5, 2]).write(folder)
    else:
        write(tmp_path / "other", random_parts(0, 5), [])
        file.write_bytes((tmp_path / "other" / TOKENS).read_bytes())
    with pytest.raises(UserError, match=f"remove {folder} and run again") as caught:
        TokenFile(folder)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def logps_of(tokens: TokenFile, row: int) -> np.ndarray:
    """Made up: no two pairs have the same."""
    length = sum(side.answer_length for side in tokens.pair(row))
    return -np.float32(1 + row + np.arange(length) / 100)


def write_part_of(folder: Path, tokens: TokenFile, ends: list[int]) -> None:
    """Write the log-probs of a begun part up to each of its pairs `ends` in turn."""
    index = np.load(folder / "rows.npy")
    for end in ends:
        draft = PartDraft(folder)
        logps = [logps_of(tokens, row) for row in index["row"][draft.pairs : end].tolist()]
        draft.write(int(index["answers"][draft.pairs]), np.concatenate(logps), end)


def write_reference(folder: Path, tokens: TokenFile, rows: list[int], ends: list[int]) -> Path:
    """A product of one part."""
    folder.mkdir(exist_ok=True)
    part = folder / part_name(0)
    begin_part(part, tokens, np.array(rows))
    write_part_of(part, tokens, ends)
    return part


def test_reference_log_probs_resume_after_the_last_pairs_that_were_written(tmp_path):
    tokens = write(tmp_path / "tokens", random_parts(0, 5, 6), random_parts(1, 4))
    rows = [0, 2, 5, 8, 11, 13]
    parts = [
        write_reference(tmp_path / "whole", tokens, rows, [6]),
        write_reference(tmp_path / "twice", tokens, rows, [1, 3]),
    ]
    assert PartDraft(parts[1]).pairs == 3
    write_part_of(parts[1], tokens, [5, 6])
    reference = Reference(tmp_path / "twice", tokens)
    assert reference.rows().tolist() == rows
    for row in rows:
        assert reference.logps(row).tolist() == logps_of(tokens, row).tolist()
    assert len({(part / LOGPS).read_bytes() for part in parts}) == 1
    for row in (1, 14):
        with pytest.raises(UserError, match=f"lacks the pair in row {row}"):
            reference.logps(row)


def test_reference_log_probs_of_other_tokens_are_never_read(tmp_path):
    tokens = write(tmp_path / "tokens", random_parts(0, 5), [])
    other = write(tmp_path / "other", random_parts(1, 5), [])
    write_reference(tmp_path / "reference", tokens, [0, 4], [2])
    with pytest.raises(UserError, match="are of other tokens than .* remove the run's reference/"):
        Reference(tmp_path / "reference", other)


@pytest.mark.parametrize("harm", ["cut", "shape", "rows", "unfinished", "version"])
def test_damaged_reference_log_probs_are_one_line(tmp_path, harm):
    tokens = write(tmp_path / "tokens", random_parts(0, 5), [])
    folder = tmp_path / "reference"
    part = write_reference(folder, tokens, [0, 1, 4], [2] if harm == "unfinished" else [3])
    file = part / LOGPS
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif harm == "shape":
        np.save(file, np.load(file)[1:])
    elif harm == "rows":
        (part / "rows.npy").unlink()
    elif harm == "version":
        manifest = json.loads((part / "manifest.json").read_text())
        (part / "manifest.json").write_text(json.dumps(manifest | {"version": 1}))
    with pytest.raises(UserError) as caught:
        Reference(folder, tokens)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_product_gets_parts_of_just_the_pairs_that_it_lacks(tmp_path):
    tokens = write(tmp_path / "tokens", random_parts(0, 5, 6), random_parts(1, 4))
    output, made = tmp_path / "output", tmp_path / "made"
    output.mkdir()
    needed = np.array([0, 2, 5, 8])
    (first,) = parts_to_compute(output, None, tokens, needed)
    assert (first.name, PartManifest.read(first).pairs) == (part_name(0), 0)
    write_part_of(first, tokens, [1])
    # A killed run's part is gone on with, also where more is needed by now.
    again = parts_to_compute(output, None, tokens, np.array([0, 2, 5, 8, 13]))
    assert again == [first, output / part_name(1)] and PartDraft(first).pairs == 1
    write_part_of(first, tokens, [4])
    write_part_of(again[1], tokens, [1])
    assert parts_to_compute(output, None, tokens, np.array([0, 2, 5, 8, 13])) == []
    output.rename(made)
    output.mkdir()
    assert parts_to_compute(output, made, tokens, needed) == []
    (third,) = parts_to_compute(output, made, tokens, np.array([0, 1, 2, 10]))
    assert third == output / part_name(2)
    write_part_of(third, tokens, [2])
    third.rename(made / third.name)
    reference = Reference(made, tokens)
    assert reference.rows().tolist() == [0, 2, 5, 8, 13, 1, 10]
    for row in reference.rows().tolist():
        assert reference.logps(row).tolist() == logps_of(tokens, row).tolist()


def test_a_begun_part_goes_where_its_pairs_are_not_needed_or_of_other_tokens(tmp_path):
    tokens = write(tmp_path / "tokens", random_parts(0, 9), [])
    output = tmp_path / "output"
    write_reference(output, tokens, [0, 2, 5], [1])
    (part,) = parts_to_compute(output, None, tokens, np.array([0, 5, 8]))
    assert np.load(part / "rows.npy")["row"].tolist() == [0, 5, 8] and PartDraft(part).pairs == 0
    write_part_of(part, tokens, [2])
    other = write(tmp_path / "other", random_parts(1, 9), [])
    parts_to_compute(output, None, other, np.array([0, 5, 8]))
    assert PartDraft(part).pairs == 0
    (part / "manifest.json").unlink()  # killed while it was begun
    assert parts_to_compute(output, None, tokens, np.array([1])) == [part]
    assert parts_to_compute(output, None, tokens, np.array([], int)) == []
    assert part_folders(output) == []


def test_reference_log_probs_are_of_the_pairs_that_policies_read(tmp_path):
    tokens = write(tmp_path / "tokens", random_parts(0, 9), random_parts(1, 5))
    kept = [("0", "mine", False, 0.0), ("3", "mine", False, 0.0), ("1", "other", False, 0.0)]
    more = [("8", "mine", True, 0.0), ("0", "mine", False, 0.0)]
    held = [("a", "other", False, 0.0), ("b", "mine", False, 0.0), ("d", "mine", False, 0.0)]
    for name, rows in (("kept", kept), ("more", more), ("heldout", held)):
        filtered_file(tmp_path / f"{name}.parquet", rows)
    report_of_files(tmp_path, "kept.parquet", "more.parquet")

    def read(dataset: str) -> list[int]:
        asked = PairsRead.from_text(PairsRead("filtered/a/b", 2).as_text())
        return np.flatnonzero(rows_read(tokens, dataset, tmp_path, asked)).tolist()

    assert read("mine") == [0, 3, 8, 11] and read("none") == []
    filtered_file(tmp_path / "more.parquet", [("ff", "mine", False, 0.0)])
    with pytest.raises(UserError, match="pair ff of .* has no tokens"):
        read("mine")


def report_of_files(folder: Path, *names: str) -> None:
    """The report of a filtered set of these files, the other fields made up."""
    counts = PairCounts(0, 0, {}, 0, 0, 0, {}, {})
    none = RuleComparison(0, 0, [], [])
    files = [PairsFile(name, 0) for name in names]
    about = ("m", KeepRule("all"), None, "v", ["v"], ["d"], "zscore", "dataset")
    FilterReport(*about, counts, HeldOut(0, 0), {}, {}, [], [], none, files).write(folder)


def filtered_file(path: Path, rows: list[tuple[str, str, bool, float]]) -> Path:
    columns = zip(*rows, strict=True) if rows else [()] * 4
    types = (pa.string(), pa.string(), pa.bool_(), pa.float64())
    names = ("id", "dataset", "swapped", "consistency")
    arrays = [pa.array(each, type_) for each, type_ in zip(columns, types, strict=True)]
    pq.write_table(pa.table(arrays, names=list(names)), path)
    return path


@settings(max_examples=25)
@given(data=st.data())
def test_selected_pairs_are_those_of_the_filtered_files_in_their_order(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("selection")
    tokens = {
        name: write(root / name, random_parts(seed, 9, 5), [])
        for seed, name in enumerate(("one", "two"))
    }
    known = [(name, row) for name in tokens for row in range(14)]
    chosen = data.draw(st.permutations(known))[: data.draw(st.integers(0, 28))]
    rows = [
        (f"{row:x}", name, data.draw(st.booleans()), data.draw(st.floats(-0.9, 1)))
        for name, row in chosen
    ]
    cut, limit = data.draw(st.integers(0, len(rows))), data.draw(st.sampled_from([None, 1, 3, 50]))
    halves = (rows[:cut], rows[cut:])
    files = [filtered_file(root / f"{i}.parquet", part) for i, part in enumerate(halves)]
    parts = [half[:limit] for half in halves]
    selection = select_filtered(root / "train.npy", tokens, files, limit, weighted=True)
    usable = [each for part in parts for each in part if int(each[0], 16) % 14 % 9 % 4 != 3]
    left = [each for part in parts for each in part if each not in usable]
    assert selection.pairs == len(usable)
    assert sum(selection.left_out.values()) == len(left)
    refused = [each for each in left if int(each[0], 16) % 9 == 7]
    assert selection.refused == (f"pair {refused[0][0]}: no 7" if refused else None)
    examples = Examples(selection, list(tokens.values()), [], of_pairs=True)
    assert len(examples) == len(usable)
    weights = consistency_weights(np.array([each[3] for each in usable])) if usable else []
    for example, (id_, name, swapped, _), weight in zip(examples, usable, weights, strict=True):
        sides = tokens[name].pair(int(id_, 16))
        expected = sides[::-1] if swapped else sides
        assert example.id == id_
        assert [as_lists(each) for each in (example.chosen, example.rejected)] == [
            as_lists(each) for each in expected
        ]
        assert example.weight == weight and example.tokens == pair_tokens(*sides)


def test_examples_have_the_log_probs_of_their_own_answers(tmp_path):
    tokens = write(tmp_path / "tokens", random_parts(0, 9), [])
    write_reference(tmp_path / "reference", tokens, [0, 4, 8], [3])
    reference = Reference(tmp_path / "reference", tokens)
    rows = [("8", "tokens", True, 0.0), ("0", "tokens", False, 0.0)]
    file = filtered_file(tmp_path / "pairs.parquet", rows)
    selection = select_filtered(tmp_path / "train.npy", {"tokens": tokens}, [file])
    swapped, kept = Examples(selection, [tokens], [reference], of_pairs=True)
    for example, row in ((swapped, 8), (kept, 0)):
        logps = (example.reference_chosen, example.reference_rejected)
        own = np.concatenate(logps[::-1] if row == 8 else logps)
        assert own.tolist() == logps_of(tokens, row).tolist()
        assert len(logps[0]) == example.chosen.answer_length


def test_supervised_training_takes_all_training_pairs_and_the_first_held_out_ones(tmp_path):
    tokens = [write(tmp_path / str(i), random_parts(i, 9), random_parts(i, 3)) for i in range(2)]
    train = select_all(tmp_path / "train.npy", tokens)
    heldout = select_all(tmp_path / "heldout.npy", tokens, 2)
    assert [train.pairs, heldout.pairs] == [14, 4]
    assert train.left_out == {Unusable.SAME: 2, Unusable.REFUSED: 2}
    examples = Examples(heldout, tokens, [], of_pairs=False)
    assert [each.id for each in examples] == ["9", "a", "9", "a"]
    assert all(each.rejected is NO_ANSWER for each in examples)


def test_pairs_without_tokens_or_a_dataset_are_one_line(tmp_path):
    tokens = {"one": write(tmp_path / "one", random_parts(0, 5), [])}
    for row, said in ((("f", "one", False, 0.0), "pair f"), (("0", "two", False, 0.0), "other")):
        file = filtered_file(tmp_path / "pairs.parquet", [row])
        with pytest.raises(UserError, match=said):
            select_filtered(tmp_path / "train.npy", tokens, [file])
    plain = pq.read_table(file).drop_columns(["consistency"])
    pq.write_table(plain, file)
    with pytest.raises(UserError, match="training.pair_weights: these pairs have no column"):
        select_filtered(tmp_path / "train.npy", tokens, [file], weighted=True)
