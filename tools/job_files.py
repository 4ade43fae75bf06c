"""The files that a job of training ranks reads, of pairs at hand, as the stages write them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vcsoup_dist.recipe import Training
from vcsoup_dist.records.pairs import HELD_OUT, PairsFile, PairsManifest, pairs_schema, train_name
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.tokens.stage import encode_part, write_tokens
from vcsoup_dist.training.job import Selection
from vcsoup_dist.training.selection import select_all


def write_pairs(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A finished `pairs/<dataset>` without held-out pairs."""
    folder.mkdir()
    for name, part in ((train_name(0), rows), (HELD_OUT, [])):
        pq.write_table(pa.Table.from_pylist(part, schema=pairs_schema(())), folder / name)
    shards = [PairsFile(train_name(0), len(rows))]
    PairsManifest(len(rows), len(rows), 0, shards).write(folder)


def write_token_file(pairs: Path, output: Path, model: Path, training: Training) -> TokenFile:
    """The tokens of a finished `pairs/<dataset>`, encoded in this process."""
    parts = output / "parts"
    parts.mkdir(parents=True)
    encode = functools.partial(map, functools.partial(encode_part, str(model), None, training))
    write_tokens(pairs, parts, output, encode)
    return TokenFile(output)


def select(root: Path, tokens: TokenFile) -> tuple[Selection, Selection]:
    """All pairs to train on, and no held-out ones."""
    return select_all(root / "train.npy", [tokens]), select_all(root / "heldout.npy", [tokens], 0)
