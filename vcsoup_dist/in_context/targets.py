"""Which scores a trade-off asks for, and how many training answers have such scores.

RiC (Yang et al. 2024, arXiv 2402.10207), its map `l2`, with r_i a standardised reward and
[low_i, high_i] its bounds:

    target_i = lambda_i / ||lambda||_2 (high_i - low_i) + low_i
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.in_context.prompts import written_score
from vcsoup_dist.records.in_context import AskedScores, Bounds
from vcsoup_dist.records.union import TRAIN, UnionManifest
from vcsoup_dist.workspace import Product, Workspace

Array = NDArray[np.float64]

NEAR = 0.5
"""Standard deviations, on every value, within which an answer is near a target."""
DRAWS, SEED = 50_000, 0
"""Of the bounds `gaussian`."""


@dataclass(frozen=True)
class Target:
    """What the prompts of one trade-off ask for."""

    asked: AskedScores
    scores: tuple[float, ...]
    """[N] standardised, as they are written: with one decimal."""
    near: int
    """Training answers whose scores are all within `NEAR` of it."""
    answers: int
    """Training answers."""

    def text(self) -> str:
        """Such as `helpful 2.1, harmless -1.3; 9 of 300 training answers (3.0%) are within ...`."""
        named = zip(self.asked.scores.values, self.scores, strict=True)
        shown = ", ".join(f"{value} {score:.1f}" for value, score in named)
        share = self.near / self.answers
        return (
            f"{shown}; {self.near:,} of {self.answers:,} training answers ({share:.1%}) are within "
            f"{NEAR} deviations on every value"
        )

    def fault(self) -> str | None:
        """That no training answer is near it."""
        if self.near:
            return None
        return (
            f"no training answer is within {NEAR} deviations of what it asks for on every "
            "value, so that the policy never saw such scores; bounds nearer to each other ask for "
            "less"
        )


def targets_of(workspace: Workspace, products: Sequence[Product]) -> dict[str, Target]:
    """What the prompts of evaluations ask for, by their name; of those whose prompts do."""
    asking = [each for each in products if "asked" in each.made_from]
    found: dict[str, Target] = {}
    answers: Array | None = None
    for each in asking:
        asked = AskedScores.from_json(each.made_from["asked"])
        if answers is None:  # one union, and the values that have policies
            (union,) = each.inputs_of("union")
            answers = standardised_answers(workspace.need(union), asked.scores.values)
        scores = target_scores(asked.weights, score_bounds(answers, asked.bounds))
        found[each.name] = Target(asked, scores, near_answers(answers, scores), len(answers))
    return found


def standardised(rewards: Array, manifest: UnionManifest, values: Sequence[str]) -> Array:
    """(reward - mean) / std of rewards [..., N] by the mean and deviation over the union."""
    mean, std = (np.array([each[v] for v in values]) for each in (manifest.mean, manifest.std))
    scores: Array = (rewards - mean) / std
    return scores


def standardised_answers(union: Path, values: Sequence[str]) -> Array:
    """Scores [A, N] of both answers of every training pair of the union."""
    table = pq.read_table(
        union / TRAIN,
        columns=["once", *(f"{side}_{v}" for side in ("chosen", "rejected") for v in values)],
    )
    rewards = both_rewards(table.filter(table["once"]), values)
    return standardised(rewards.reshape(-1, len(values)), UnionManifest.read(union), values)


def both_rewards(table: pa.Table, values: Sequence[str]) -> Array:
    """Rewards [P, 2, N] of the chosen and the rejected answers of rows of the union."""
    return np.stack(
        [
            np.stack([table[f"{side}_{value}"].to_numpy() for value in values], axis=1)
            for side in ("chosen", "rejected")
        ],
        axis=1,
    )


def score_bounds(answers: Array, bounds: Bounds) -> Array:
    """[2, N] low and high of every value, from scores [A, N] or normal draws."""
    if bounds == "gaussian":
        draws = np.random.default_rng(SEED).standard_normal((DRAWS, answers.shape[1]))
        return np.stack([draws.min(axis=0), draws.max(axis=0)])
    return np.quantile(answers, bounds, axis=0)


def target_scores(weights: Sequence[float], bounds: Array) -> tuple[float, ...]:
    """The target [N] of a trade-off lambda [N] with bounds [2, N], each with one decimal."""
    row = np.array(weights, dtype=np.float64)
    low, high = bounds
    scores = row / np.linalg.norm(row) * (high - low) + low
    return tuple(float(written_score(each)) for each in scores.tolist())


def near_answers(answers: Array, target: Sequence[float]) -> int:
    """How many of scores [A, N] are within `NEAR` of a target on every value."""
    return int((np.abs(answers - np.array(target)) <= NEAR).all(axis=1).sum())
