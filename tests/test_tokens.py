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
from vcsoup_dist.records.reference import (
    LOGPS,
    ReferenceDraft,
    open_reference,
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
    with pytest.raises(UserError, match="remove the run's tokens/ folder") as caught:
        TokenFile(folder)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def logps_of(tokens: TokenFile) -> np.ndarray:
    return -np.arange(1, tokens.manifest.answer_tokens + 1, dtype=np.float32)


def write_reference(folder: Path, tokens: TokenFile, ends: list[int]) -> ReferenceDraft:
    """Write the log-probs up to each of the rows `ends` in turn."""
    folder.mkdir(exist_ok=True)
    draft = ReferenceDraft(folder, tokens)
    whole, size = logps_of(tokens), tokens.manifest.answer_tokens
    for end in ends:
        first = tokens.answers_before(draft.rows())
        last = tokens.answers_before(end) if end < tokens.rows else size
        draft.write(first, whole[first:last], end)
    return draft


def test_reference_log_probs_resume_after_the_last_rows_that_were_written(tmp_path):
    tokens = write(tmp_path / "tokens", random_parts(0, 5, 6), random_parts(1, 4))
    whole = write_reference(tmp_path / "whole", tokens, [15])
    write_reference(tmp_path / "twice", tokens, [4, 9])
    resumed = write_reference(tmp_path / "twice", tokens, [12, 15])
    assert resumed.rows() == whole.rows() == 15
    assert open_reference(tmp_path / "twice", tokens).tolist() == logps_of(tokens).tolist()
    files = [(tmp_path / name / LOGPS).read_bytes() for name in ("whole", "twice")]
    assert files[0] == files[1]


def test_reference_log_probs_of_other_tokens_start_anew_and_are_never_read(tmp_path):
    tokens = write(tmp_path / "tokens", random_parts(0, 5), [])
    other = write(tmp_path / "other", random_parts(1, 5), [])
    write_reference(tmp_path / "reference", tokens, [5])
    with pytest.raises(UserError, match="are of other tokens than .* remove the run's reference/"):
        open_reference(tmp_path / "reference", other)
    assert ReferenceDraft(tmp_path / "reference", other).rows() == 0


@pytest.mark.parametrize("harm", ["cut", "shape", "unfinished", "version"])
def test_damaged_reference_log_probs_are_one_line(tmp_path, harm):
    tokens = write(tmp_path / "tokens", random_parts(0, 5), [])
    folder = tmp_path / "reference"
    write_reference(folder, tokens, [3] if harm == "unfinished" else [5])
    file = folder / LOGPS
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif harm == "shape":
        np.save(file, logps_of(tokens)[1:])
    elif harm == "version":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 1}))
    with pytest.raises(UserError) as caught:
        open_reference(folder, tokens)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


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
    write_reference(tmp_path / "reference", tokens, [9])
    logps = open_reference(tmp_path / "reference", tokens)
    rows = [("8", "tokens", True, 0.0), ("0", "tokens", False, 0.0)]
    file = filtered_file(tmp_path / "pairs.parquet", rows)
    selection = select_filtered(tmp_path / "train.npy", {"tokens": tokens}, [file])
    swapped, kept = Examples(selection, [tokens], [logps], of_pairs=True)
    first = tokens.answers_before(8)
    chosen, rejected = tokens.pair(8)
    middle = first + chosen.answer_length
    assert swapped.reference_rejected.tolist() == logps[first:middle].tolist()
    assert (
        swapped.reference_chosen.tolist()
        == logps[middle : middle + rejected.answer_length].tolist()
    )
    assert kept.reference_chosen.tolist() == logps[: tokens.pair(0)[0].answer_length].tolist()


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
