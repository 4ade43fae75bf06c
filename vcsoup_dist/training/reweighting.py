"""The label, margin and weight of every pair for one trade-off: rows that a policy trains on.

With h as in `objectives`, a pair's loss is -v (p log sigmoid(z) + (1 - p) log sigmoid(-z)), where
z = (beta h - m) / w: `records/reweighting.py` says what each method's p, m, v and w are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.errors import UserError
from vcsoup_dist.records.reweighting import Reweighting
from vcsoup_dist.records.tokens import FIX, TokenFile
from vcsoup_dist.records.union import HELD_OUT, TRAIN, UnionManifest
from vcsoup_dist.training.implicit_rewards import ImplicitRewards
from vcsoup_dist.training.job import Selection
from vcsoup_dist.training.selection import ROW, write_usable

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

TIE, NO_WEIGHT = "tie of the weighted values", "weight 0"


@dataclass(frozen=True)
class UnionPairs:
    """P pairs of the union's files, a row group."""

    dataset: NDArray[np.str_]
    """[P] names."""
    row: NDArray[np.uint32]
    """[P] in the dataset's training, or held-out, pairs."""
    ids: pa.Array
    once: Mask
    """[P] whether the union has the pair, which it has once."""
    prefers: Array
    """[P, N] 1 where a trained value prefers the chosen answer, -1 the rejected one, 0 neither."""
    gaps: Array
    """[P, N] rewards of chosen minus rejected answers."""


@dataclass(frozen=True)
class Scales:
    """Of the N trained values' rewards."""

    std: Array
    """[N] s_j."""
    temperature: Array
    """[N] a_j; NaN where the reward is no better than chance."""


@dataclass(frozen=True)
class Targets:
    """Of K pairs, some of P; a pair may come once for each value."""

    place: NDArray[np.int64]
    """[K] in the P pairs."""
    label: Array
    """[K] p."""
    margin: Array
    """[K] m."""
    weight: Array
    """[K] v."""
    left_out: Mapping[str, int]
    """Reason -> pairs that the method leaves out."""


def reweigh(pairs: UnionPairs, how: Reweighting, scales: Scales) -> Targets:
    """p, m and v of pairs under one trade-off."""
    weights = np.array(list(how.weights.values()))
    if how.labels == "own":
        return _own(pairs, how, weights)
    if how.value is not None:
        k = list(how.weights).index(how.value)
        place, label, left_out = _pairs_of(pairs, how, how.value, k)
        # Implicit rewards are not in the union: `ImplicitRewards` has their margins.
        others = weights * scales.temperature * (how.labels == "margin")
        others[k] = 0.0
        # A pair that the value's own reward turns round has its answers exchanged.
        margin = (pairs.gaps[place] @ others) * label
        return _oriented(place, label, margin, np.ones(len(place)), left_out)
    place = np.flatnonzero(pairs.once)
    prefers, gaps = pairs.prefers[place], pairs.gaps[place]
    if how.labels == "logits":
        p = _sigmoid(gaps @ (weights * scales.temperature))
    elif how.labels == "votes":
        p = ((prefers + 1) / 2) @ weights
    else:
        total = (prefers * np.abs(gaps) / scales.std) @ weights
        told = total != 0
        place, p = place[told], (total[told] > 0).astype(np.float64)
        ties = Counter({TIE: int((~told).sum())})
        return _soft(place, p, ties)
    return _soft(place, p, Counter())


def _own(pairs: UnionPairs, how: Reweighting, weights: Array) -> Targets:
    """Each value's own pairs, with its label and N times its weight."""
    parts = []
    left_out: Counter[str] = Counter()
    for i, value in enumerate(how.weights):
        place, label, gone = _pairs_of(pairs, how, value, i)
        if weights[i] == 0:
            left_out[NO_WEIGHT] += len(place)
            continue
        left_out += gone
        parts.append((place, label, np.full(len(place), len(weights) * weights[i])))
    place, label, weight = (np.concatenate(each) for each in zip(*parts, strict=True))
    return _oriented(place, label, np.zeros(len(place)), weight, left_out)


def _pairs_of(
    pairs: UnionPairs, how: Reweighting, value: str, i: int
) -> tuple[NDArray[np.int64], Array, Counter[str]]:
    """The pairs [K] that teach a value, and its label of each, 1 or -1."""
    datasets = how.datasets[value]
    inside = np.isin(pairs.dataset, datasets)
    if datasets == [value]:  # labelled by people
        place = np.flatnonzero(inside)
        return place, np.ones(len(place)), Counter()
    place = np.flatnonzero(inside & pairs.once)
    label = pairs.prefers[place, i]
    told = label != 0
    return place[told], label[told], Counter({TIE: int((~told).sum())})


def _soft(place: NDArray[np.int64], p: Array, left_out: Counter[str]) -> Targets:
    nothing, one = np.zeros(len(place)), np.ones(len(place))
    return Targets(place, p, nothing, one, left_out)


def _oriented(
    place: NDArray[np.int64], sign: Array, margin: Array, weight: Array, left_out: Counter[str]
) -> Targets:
    """Of hard labels: `margin` is of the answers as the label orders them."""
    return Targets(place, (sign + 1) / 2, margin * sign, weight, left_out)


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        p: Array = 1 / (1 + np.exp(-x))
    return p


def select_reweighted(
    file: Path,
    tokens: Mapping[str, TokenFile],
    union: Path,
    how: Reweighting,
    heldout_share: int | None = None,
    implicit: ImplicitRewards | None = None,
) -> Selection:
    """The pairs of the union under one trade-off; or the first held-out ones of each dataset.

    file: takes the rows. tokens: by dataset. implicit: what margins are made of in place of the
    union's rewards. Answers are exchanged where p < 1/2, so that every
    label is at least that. UserError where a temperature that is needed is missing, or the token
    files lack a pair.
    """
    scales = _scales(UnionManifest.read(union), how)
    names = pa.array(tokens)
    groups = [np.zeros(0, ROW)]
    ids = [pa.array([], pa.string())]
    left_out: Counter[str] = Counter()
    heldout = heldout_share is not None
    for pairs, targets, place in _chosen(union, how, scales, heldout_share):
        left_out.update(targets.left_out)
        swapped = targets.label < 0.5
        kept = slice(len(place))
        rows = np.zeros(len(place), ROW)
        rows["dataset"] = pc.index_in(pa.array(pairs.dataset[place]), names).to_numpy()
        rows["row"] = pairs.row[place]
        rows["swapped"] = swapped[kept]
        rows["label"] = np.where(swapped, 1 - targets.label, targets.label)[kept]
        rows["margin"] = np.where(swapped, 0.0 - targets.margin, targets.margin)[kept]
        rows["weight"] = targets.weight[kept]
        groups.append(rows)
        ids.append(pairs.ids.take(pa.array(place)))
    rows, known = np.concatenate(groups), pa.concat_arrays(ids)
    for dataset, each in enumerate(tokens.values()):
        mine = rows["dataset"] == dataset
        if heldout:
            rows["row"][mine] += each.manifest.train
        _check_ids(each, rows["row"][mine], known.filter(pa.array(mine)))
    if implicit is not None:
        rows["margin"] = implicit.margins(tokens, rows)
    divisor = how.weights[how.value] if how.value is not None else 1.0
    return write_usable(
        file,
        list(tokens.values()),
        rows,
        left_out=left_out,
        divisor=divisor,
    )


def rows_of_union(
    tokens: TokenFile, dataset: str, union: Path, how: Reweighting, heldout_share: int
) -> NDArray[np.int64]:
    """Rows of a dataset that a policy reads: what `select_reweighted` takes, train and held out.

    UserError as there where a temperature is missing.
    """
    scales = _scales(UnionManifest.read(union), how)
    found = [np.zeros(0, np.int64)]
    for first, share in ((0, None), (tokens.manifest.train, heldout_share)):
        for pairs, _, place in _chosen(union, how, scales, share):
            found.append(first + pairs.row[place[pairs.dataset[place] == dataset]].astype(np.int64))
    return np.concatenate(found)


def _chosen(
    union: Path, how: Reweighting, scales: Scales, heldout_share: int | None
) -> Iterator[tuple[UnionPairs, Targets, NDArray[np.int64]]]:
    """Training pairs a row group at a time, their targets, and the places of those to take.

    Or the first held-out ones of each dataset.
    """
    seen: Counter[str] = Counter()
    file = union / (TRAIN if heldout_share is None else HELD_OUT)
    for pairs in _row_groups(file, list(how.weights)):
        targets = reweigh(pairs, how, scales)
        place = targets.place
        if heldout_share is not None and len(pairs.dataset):
            name = str(pairs.dataset[0])  # a row group is of one dataset
            place = place[: max(0, heldout_share - seen[name])]
            seen[name] += len(place)
        yield pairs, targets, place


def _check_ids(tokens: TokenFile, rows: NDArray[Any], ids: pa.Array) -> None:
    known = tokens.table(["id"])["id"].take(pa.array(rows))
    same = pc.equal(known.combine_chunks(), ids)
    if not pc.all(same, min_count=0).as_py():
        raise UserError(f"{tokens.folder}: its pairs are not those of the union; {FIX}")


def _row_groups(path: Path, values: Sequence[str]) -> Iterator[UnionPairs]:
    file = pq.ParquetFile(path)
    for number in range(file.num_row_groups):
        table = file.read_row_group(number, use_threads=False)

        def columns(prefix: str, table: pa.Table = table) -> Array:
            found = [table[f"{prefix}_{value}"].to_numpy() for value in values]
            return np.stack(found, axis=1).astype(np.float64)

        yield UnionPairs(
            np.asarray(table["dataset"].to_pylist()),
            table["row"].to_numpy(),
            table["id"].combine_chunks(),
            table["once"].to_numpy(),
            columns("prefers"),
            columns("chosen") - columns("rejected"),
        )


def _scales(manifest: UnionManifest, how: Reweighting) -> Scales:
    values = list(how.weights)
    if how.labels in ("logits", "margin"):
        for value in values:
            found = manifest.temperatures[value]
            needed = how.weights[value] != 0 and value != how.value
            if found.a is None and needed:
                agree = "" if found.agree is None else f" ({found.agree:.0%} of {found.pairs})"
                raise UserError(
                    f"values.{value}: its reward agrees with its held-out pairs no better than "
                    f"chance{agree}, so that it has no temperature; take another reward, check its "
                    "`sign`, or drop the method that sums it with others"
                )
    a = [manifest.temperatures[value].a for value in values]
    std = [manifest.std[value] for value in values]
    return Scales(np.array(std), np.array([0.0 if each is None else each for each in a]))
