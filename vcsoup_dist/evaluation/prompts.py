"""Which held-out prompts the soups answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import xxhash


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt."""

    id: str
    """Hash of the messages."""
    dataset: str
    messages: list[dict[str, str]]


def prompt_id(messages: Sequence[Mapping[str, str]]) -> str:
    """16 hex digits that depend on the messages alone."""
    text = json.dumps([[each["role"], each["content"]] for each in messages], ensure_ascii=False)
    return xxhash.xxh3_128_hexdigest(text.encode())[:16]


def choose_prompts(pairs: Mapping[str, Path], count: int) -> list[Prompt]:
    """The first `count` distinct held-out prompts of each dataset by their hash.

    pairs: folder of canonical pairs by dataset. A prompt that two datasets share is taken once.
    """
    chosen: dict[str, Prompt] = {}
    for dataset, folder in pairs.items():
        rows = pq.read_table(folder / "heldout.parquet", columns=["prompt"]).to_pylist()
        own = {prompt_id(row["prompt"]): row["prompt"] for row in rows}
        for key in sorted(own)[:count]:
            chosen.setdefault(key, Prompt(key, dataset, own[key]))
    return list(chosen.values())


def seen_in_training(prompts: Sequence[Prompt], pairs: Mapping[str, Path]) -> dict[str, list[str]]:
    """Ids of the prompts that occur in a dataset's training pairs, by dataset."""
    found: dict[str, list[str]] = {}
    for dataset, folder in pairs.items():
        trained = {
            prompt_id(messages)
            for file in sorted(folder.glob("train-*.parquet"))
            for messages in pq.read_table(file, columns=["prompt"])["prompt"].to_pylist()
        }
        if shared := [prompt.id for prompt in prompts if prompt.id in trained]:
            found[dataset] = shared
    return found
