"""Which held-out prompts the soups answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from vcsoup_dist.records.pairs import HELD_OUT, PairsManifest


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt."""

    id: str
    """As in the files of pairs."""
    dataset: str
    messages: list[dict[str, str]]


def choose_prompts(pairs: Mapping[str, Path], count: int) -> list[Prompt]:
    """The first `count` distinct held-out prompts of each dataset by their id.

    pairs: folder of canonical pairs by dataset. A prompt that two datasets share is taken once.
    """
    chosen: dict[str, Prompt] = {}
    for dataset, folder in pairs.items():
        rows = pq.read_table(folder / HELD_OUT, columns=["prompt_id", "prompt"]).to_pylist()
        own = {row["prompt_id"]: row["prompt"] for row in rows}
        for key in sorted(own)[:count]:
            chosen.setdefault(key, Prompt(key, dataset, own[key]))
    return list(chosen.values())


def seen_in_training(prompts: Sequence[Prompt], pairs: Mapping[str, Path]) -> dict[str, list[str]]:
    """Ids of the prompts that occur in a dataset's training pairs, by dataset.

    Holds the ids of one file at a time.
    """
    wanted = {prompt.id for prompt in prompts}
    found: dict[str, list[str]] = {}
    for dataset, folder in pairs.items():
        trained: set[str] = set()
        for each in PairsManifest.read(folder).files:
            ids = pq.read_table(folder / each.file, columns=["prompt_id"])["prompt_id"]
            trained.update(wanted.intersection(ids.to_pylist()))
        if shared := [prompt.id for prompt in prompts if prompt.id in trained]:
            found[dataset] = shared
    return found
