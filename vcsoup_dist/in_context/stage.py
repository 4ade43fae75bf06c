"""Entry of stage `in_context`: token files whose prompts say the scores of their answers.

`in_context/<method>/<dataset>` is like `tokens/<dataset>` (`records/tokens.py`), but has only the
pairs of the union, and each answer comes after a prompt of its own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.in_context.encoding import check_arrival, scored_pair
from vcsoup_dist.in_context.targets import both_rewards, standardised
from vcsoup_dist.launch.task_map import Run
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.recipe import Recipe, Training
from vcsoup_dist.records.in_context import ScorePrompt
from vcsoup_dist.records.pairs import HELD_OUT, PairsManifest, cut_rows, read_slice
from vcsoup_dist.records.union import HELD_OUT as UNION_HELD_OUT
from vcsoup_dist.records.union import TRAIN, UnionManifest
from vcsoup_dist.tokens.stage import (
    Encode,
    Part,
    cached_tokenizer,
    make_token_files,
    write_encoded,
)
from vcsoup_dist.workspace import Product, Workspace

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredPart(Part):
    """A part with the standardised scores of its P pairs."""

    scores: Array
    """[P, 2, N] of chosen and rejected answers; NaN where a pair is not in the union."""


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make the products of stage `in_context`.

    UserError where the chat template does not let the scores arrive in the tokens.
    """

    def encoder(product: Product, pairs: Path, run: Run, workers_lock: Path) -> Encode:
        model, how = product.sources["model"], ScorePrompt.from_json(product.made_from["scores"])
        (union,) = (workspace.need(each) for each in product.inputs_of("union"))
        tokenizer = cached_tokenizer(model.source, model.revision)
        for pair in _first_pair(pairs):
            check_arrival(tokenizer, how, pair.prompt, str(product.method))
        encode = functools.partial(
            encode_scored_part, model.source, model.revision, recipe.training, how
        )
        scores = PartScores(pairs, union, str(product.dataset), how.values)
        return lambda parts: run(encode, map(scores.of, parts), workers_lock=workers_lock)

    make_token_files(recipe, workspace, products, encoder)


def encode_scored_part(
    source: str, revision: str | None, training: Training, how: ScorePrompt, part: ScoredPart
) -> str | None:
    """Write the tokens of a part's pairs that are in the union, as `tokens.encode_part` does."""
    tokenizer = cached_tokenizer(source, revision)
    scored = [
        (pair, scores)
        for pair, scores in zip(read_slice(part.pairs), part.scores, strict=True)
        if not np.isnan(scores).any()
    ]
    tokens = [scored_pair(tokenizer, pair, scores, how, training) for pair, scores in scored]
    return write_encoded(part.output, [pair.id for pair, _ in scored], tokens)


class PartScores:
    """Standardised scores of a dataset's pairs, in their order."""

    def __init__(self, pairs: Path, union: Path, dataset: str, values: Sequence[str]) -> None:
        manifest = PairsManifest.read(pairs)
        self.train = _read(union, TRAIN, dataset, manifest.train, values)
        self.heldout = _read(union, UNION_HELD_OUT, dataset, manifest.heldout, values)
        ends = [0, *itertools.accumulate(each.rows for each in manifest.files)]
        self.starts = {each.file: end for each, end in zip(manifest.files, ends, strict=False)}

    def of(self, part: Part) -> ScoredPart:
        """A part of `pairs/<dataset>` with its scores."""
        name, first = part.pairs.file.name, part.pairs.first
        where = self.heldout if name == HELD_OUT else self.train
        first += self.starts.get(name, 0)
        return ScoredPart(part.pairs, part.output, where[first : first + part.pairs.rows])


def _read(union: Path, file: str, dataset: str, pairs: int, values: Sequence[str]) -> Array:
    """[P, 2, N] standardised scores of a dataset's pairs that are in the union; else NaN."""
    scores = np.full((pairs, 2, len(values)), np.nan)
    columns = [f"{side}_{value}" for side in ("chosen", "rejected") for value in values]
    table = pq.read_table(union / file, columns=["dataset", "row", "once", *columns])
    table = table.filter(pc.and_(table["once"], pc.equal(table["dataset"], dataset)))
    rewards = both_rewards(table, values)
    scores[table["row"].to_numpy()] = standardised(rewards, UnionManifest.read(union), values)
    return scores


def _first_pair(pairs: Path) -> list[Pair]:
    slices = [cut_rows(pairs / each.file, 1, 1) for each in PairsManifest.read(pairs).files[:1]]
    return [pair for each in slices for pair in read_slice(each[0])]
