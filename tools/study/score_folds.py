"""Rewards of the study by cross-fitting, as columns of the preference data.

A pair of fold 0 is scored by the rewards of fold 1, every other pair by those of fold 0: no reward
scores a pair that it was trained on. Rewards of two folds have units of their own, so each is
divided by its standard deviation over answers of the judges' fold to its own value's prompts, which
neither was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from folds import JUDGES, VALUES, fold_of, scored_by, write_pairs
from numpy.typing import NDArray

from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.recipe import ClassifierReward
from vcsoup_dist.scoring.load_reward import load_reward

AT_ONCE = 128  # pairs
MAX_LENGTH = 768
TUNING_PAIRS = 100  # of each value, from the judges' fold

Pairs = Mapping[str, Sequence[Pair]]
"""By value."""
Rewards = NDArray[np.float64]
"""[pairs, 2]: of the chosen answer and of the rejected one."""
Columns = dict[str, dict[str, float]]
"""Pair's id -> column -> number."""


def rewards_of(folder: Path, pairs: Sequence[Pair]) -> Rewards:
    """What one reward model gives to both answers of all pairs."""
    settings = ClassifierReward(classifier=str(folder), max_length=MAX_LENGTH)
    reward = load_reward([settings], Located(str(folder), None, None))
    found = []
    for first in range(0, len(pairs), AT_ONCE):
        some = pairs[first : first + AT_ONCE]
        texts = [(p.prompt, text) for p in some for text in (p.chosen, p.rejected)]
        found.append(reward.score(reward.encode(texts)).rewards.reshape(len(some), 2))
    return np.concatenate(found)


def tuning_pairs(training: Pairs) -> dict[str, list[Pair]]:
    """The first pairs of the judges' fold."""
    return {
        value: [pair for pair in pairs if fold_of(pair) == JUDGES][:TUNING_PAIRS]
        for value, pairs in training.items()
    }


def score_value(
    rewards: Path, value: str, training: Pairs, heldout: Pairs
) -> tuple[Columns, dict[str, dict[str, float]]]:
    """A value's columns of the pairs of all values, and what each of its rewards is worth.

    rewards: folder of `VALUE_FOLD` models; training, heldout: all pairs.
    """
    torch.set_num_threads(1)
    tuning = tuning_pairs(training)
    of_policies = [p for pairs in training.values() for p in pairs if fold_of(p) != JUDGES]
    held = {pair.id for pairs in heldout.values() for pair in pairs}
    every = [*of_policies, *(p for pairs in (*tuning.values(), *heldout.values()) for p in pairs)]
    columns: Columns = {}
    facts = {}
    for fold in (0, 1):
        # Held-out prompts lie in no fold: no reward has seen them.
        scored = [p for p in every if (0 if p.id in held else scored_by(p)) == fold]
        folder = rewards / f"{value}_{fold}"
        unit = rewards_of(folder, tuning[value]).std()
        found = rewards_of(folder, scored) / unit
        for pair, (chosen, rejected) in zip(scored, found.tolist(), strict=True):
            columns[pair.id] = {f"{value}_chosen": chosen, f"{value}_rejected": rejected}
        own = {pair.id for pair in training[value]}
        gap = np.array(
            [row[0] - row[1] for p, row in zip(scored, found, strict=True) if p.id in own]
        )
        facts[f"{value}_{fold}"] = {"accuracy_other_fold": float(np.mean(gap > 0))}
        facts[f"{value}_{fold}"] |= _worth(rewards_of(folder, heldout[value]), heldout[value])
    judge = rewards_of(rewards / f"{value}_{JUDGES}", heldout[value])
    facts[f"{value}_{JUDGES}"] = _worth(judge, heldout[value])
    return columns, facts


def crossfit(rewards: Path, training: Pairs, heldout: Pairs) -> tuple[Columns, dict[str, object]]:
    """The columns of every pair that recipes read, and what the rewards are worth."""
    columns: Columns = {}
    facts: dict[str, object] = {}
    with ProcessPoolExecutor(len(VALUES)) as pool:
        arguments = [(rewards, value, training, heldout) for value in VALUES]
        for found, worth in pool.map(score_value, *zip(*arguments, strict=True)):
            for pair, row in found.items():
                columns.setdefault(pair, {}).update(row)
            facts |= worth
    facts["signs"] = {
        value: _signs([columns[pair.id] for pair in pairs if fold_of(pair) != JUDGES])
        for value, pairs in training.items()
    }
    return columns, facts


def _worth(rewards: Rewards, pairs: Sequence[Pair]) -> dict[str, float]:
    """Share of held-out pairs that a reward orders as people do, and how it likes length."""
    gap = rewards[:, 0] - rewards[:, 1]
    words = np.array([len(p.chosen.split()) - len(p.rejected.split()) for p in pairs])
    return {
        "accuracy_heldout": float(np.mean(gap > 0)),
        "longer_is_right_heldout": float(np.mean(words > 0)),
        "correlation_with_length": float(np.corrcoef(gap, words)[0, 1]),
    }


def _signs(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Share of pairs by the signs of their gaps, in the order of VALUES, and their correlation."""
    gaps = np.array([[row[f"{v}_chosen"] - row[f"{v}_rejected"] for v in VALUES] for row in rows])
    plus = gaps > 0
    shares = {
        f"{a}{b}": float(np.mean((plus[:, 0] == (a == "+")) & (plus[:, 1] == (b == "+"))))
        for a in "+-"
        for b in "+-"
    }
    return shares | {"correlation": float(np.corrcoef(gaps.T)[0, 1]), "pairs": float(len(rows))}


def write_data(folder: Path, training: Pairs, heldout: Pairs, columns: Columns) -> None:
    """VALUE_train.jsonl of folds 0 and 1, VALUE_tuning.jsonl, VALUE_test.jsonl."""
    tuning = tuning_pairs(training)
    for value in VALUES:
        of_policies = [pair for pair in training[value] if fold_of(pair) != JUDGES]
        write_pairs(folder / f"{value}_train.jsonl", of_policies, columns)
        write_pairs(folder / f"{value}_tuning.jsonl", tuning[value], columns)
        write_pairs(folder / f"{value}_test.jsonl", heldout[value], columns)
