"""A second judge of another kind: words without their number.

Bradley-Terry over relative word frequencies: the reward of an answer is w . f, where f is its word
counts scaled to length 1, so a longer answer of the same words has the same reward. It is trained
on the judges' fold, by full-batch gradient descent to the optimum of a convex loss.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from folds import JUDGES, fold_of
from numpy.typing import NDArray

from vcsoup_dist.files import write_atomically
from vcsoup_dist.preferences.pair import Pair

VOCABULARY = 3000
RIDGE = 1e-3
WORD = re.compile(r"[\w']+|[.,!?;:*\n-]")


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def features(texts: Sequence[str], index: dict[str, int]) -> NDArray[np.float64]:
    """[texts, words]; every row has length 1, or 0 for a text of unknown words."""
    found = np.zeros((len(texts), len(index)))
    for row, text in zip(found, texts, strict=True):
        for word, count in Counter(_words(text)).items():
            if word in index:
                row[index[word]] = count
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(norms > 0, norms, 1.0))


def train(pairs: Sequence[Pair], path: Path) -> None:
    """Write the weight of every word, the most frequent VOCABULARY words."""
    counts = Counter(
        word for p in pairs for text in (p.chosen, p.rejected) for word in set(_words(text))
    )
    index = {word: i for i, (word, _) in enumerate(counts.most_common(VOCABULARY))}
    gap = features([p.chosen for p in pairs], index) - features([p.rejected for p in pairs], index)
    weights = torch.zeros(len(index), dtype=torch.float64, requires_grad=True)
    gaps = torch.from_numpy(gap)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (
            -torch.nn.functional.logsigmoid(gaps @ weights).mean() + RIDGE * weights.square().sum()
        )
        value.backward()
        return value

    optimizer.step(loss)
    learnt = weights.detach().numpy()
    write_atomically(path, json.dumps({word: float(learnt[i]) for word, i in index.items()}))


def rewards(texts: Sequence[str], path: Path) -> NDArray[np.float64]:
    """[texts]: the reward of every answer."""
    weights: dict[str, float] = json.loads(path.read_text())
    index = {word: i for i, word in enumerate(weights)}
    return features(texts, index) @ np.array(list(weights.values()))


def worth(path: Path, training: Sequence[Pair], heldout: Sequence[Pair]) -> dict[str, float]:
    """Share of pairs that it orders as people do, and how it likes length."""
    found = {}
    for name, pairs in (
        ("accuracy_trained", [p for p in training if fold_of(p) == JUDGES]),
        ("accuracy_other_folds", [p for p in training if fold_of(p) != JUDGES]),
        ("accuracy_heldout", heldout),
    ):
        gap = rewards([p.chosen for p in pairs], path) - rewards([p.rejected for p in pairs], path)
        found[name] = float(np.mean(gap > 0))
    longer = [len(p.chosen.split()) - len(p.rejected.split()) for p in heldout]
    return found | {"correlation_with_length": float(np.corrcoef(gap, longer)[0, 1])}
