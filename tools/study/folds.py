"""Folds of the study: which pairs a reward may learn from, and which it scores.

Prompts fall into three folds by their hash, so that no prompt is in two. Rewards of fold 0 score
fold 1 and the other way round; the policies learn from these two folds alone. Fold 2 trains the
judges, and nothing else but the tuning of learning rates sees it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vcsoup_dist.files import write_atomically
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import Pair, split_hash
from vcsoup_dist.preferences.rows import read_pairs

VALUES = ("helpful", "harmless")
FOLDS = 3
JUDGES = 2
"""The fold of the judges."""


def fold_of(pair: Pair) -> int:
    """0, 1 or 2, the same for all pairs of a prompt."""
    return split_hash(pair.prompt) % FOLDS


def scored_by(pair: Pair) -> int:
    """The fold whose rewards score a pair: never its own."""
    return 1 if fold_of(pair) == 0 else 0


def pairs_in(path: Path) -> Iterator[Pair]:
    """The sound pairs of a file, as the trainer reads them."""
    for _, read in read_pairs(Located(str(path), None, None)):
        if isinstance(read, Pair):
            yield read


def write_pairs(
    path: Path, pairs: Iterable[Pair], columns: Mapping[str, Mapping[str, float]] | None = None
) -> int:
    """Pairs as TRL's conversations, with the columns of each by its id; how many they are."""
    rows = []
    for pair in pairs:
        answers = {
            name: [{"role": "assistant", "content": text}]
            for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
        }
        scores = {} if columns is None else columns[pair.id]
        rows.append(json.dumps({"prompt": pair.prompt, **answers, **scores}) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(rows))
    return len(rows)
