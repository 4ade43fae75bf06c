"""A Ray actor that holds one reward model and scores shards of pairs, one after the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vcsoup_dist.identity import Located
from vcsoup_dist.launch.death import die_with_parent
from vcsoup_dist.recipe import CallableReward, ClassifierReward
from vcsoup_dist.scoring.pair_files import PairSlice, read_slice
from vcsoup_dist.scoring.rewards import Reward, Scored, Text, load_reward
from vcsoup_dist.scoring.score_files import ScoreShard, write_scores
from vcsoup_dist.workspace import hold_while_working


@dataclass(frozen=True)
class Output:
    """One value's scores of one shard."""

    product: str
    column: int
    """Which of the model's V rewards it is."""
    file: Path
    """To write."""
    workers_lock: Path
    """Lock of the product that the file belongs to."""


@dataclass(frozen=True)
class ShardTask:
    """One shard of pairs to score, and the files that lack its scores."""

    pairs: PairSlice
    outputs: tuple[Output, ...]

    @property
    def name(self) -> str:
        """What errors call it."""
        products = ", ".join(output.product for output in self.outputs)
        return f"{products}: {self.outputs[0].file.name}"


@dataclass(frozen=True)
class Unscored:
    """Pairs of one output that have no reward."""

    product: str
    pairs: int
    first: str
    """Id of the first of them, and why."""


class ScoringActor:
    """Encodes the following shard in a thread of its own while it scores the present one.

    Shards are scored on the process's main thread, since functions of the user's may need that.
    """

    def __init__(
        self,
        rewards: Sequence[ClassifierReward | CallableReward],
        source: Located,
        tokens_per_batch: int | None,
        gpu: bool,
    ) -> None:
        die_with_parent(int(os.environ["RAY_RAYLET_PID"]))
        self.settings = rewards
        self.source = source
        self.tokens_per_batch = tokens_per_batch
        self.device = "cuda" if gpu else "cpu"
        self.reward: Reward
        self.encoder = ThreadPoolExecutor(1, "encoder")
        self.ahead: tuple[ShardTask, Future[tuple[list[str], Any]]] | None = None
        self.held: set[Path] = set()

    def node(self) -> str:
        """Id of the machine; answers as soon as Ray has found room for the actor."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def load(self) -> str:
        """Load the reward; returns its description."""
        # Not in __init__, whose errors Ray gives back as text only.
        if isinstance(self.settings[0], ClassifierReward):
            import torch

            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.reward = load_reward(
            self.settings, self.source, device=self.device, tokens_per_batch=self.tokens_per_batch
        )
        return self.reward.description

    def score(self, task: ShardTask, following: ShardTask | None) -> list[Unscored]:
        """Write the scores of one shard; encode the following one meanwhile."""
        for output in task.outputs:
            if output.workers_lock not in self.held:
                hold_while_working(output.workers_lock)
                self.held.add(output.workers_lock)
        ids, encoded = self._encoding(task).result()
        if following is not None:
            self.ahead = (following, self.encoder.submit(self._encode, following))
        scored = self.reward.score(encoded)
        unscored = []
        for output in task.outputs:
            shard = score_shard(ids, scored, output.column)
            write_scores(output.file, shard)
            if shard.failures:
                position, reason = next(iter(shard.failures.items()))
                first = f"{ids[position]}: {reason}"
                unscored.append(Unscored(output.product, len(shard.failures), first))
        return unscored

    def _encoding(self, task: ShardTask) -> Future[tuple[list[str], Any]]:
        """The encoding of a task that was announced, or else a new one.

        One that was announced in vain has ended when this returns: a task that runs alone is then
        alone in its process.
        """
        ahead, self.ahead = self.ahead, None
        if ahead is not None and ahead[0] == task:
            return ahead[1]
        if ahead is not None:
            wait([ahead[1]])
        return self.encoder.submit(self._encode, task)

    def _encode(self, task: ShardTask) -> tuple[list[str], Any]:
        pairs = read_slice(task.pairs)
        # Neighbours share their prompt, so that a reward can compute its part once.
        texts: list[Text] = [
            (pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)
        ]
        return [pair.id for pair in pairs], self.reward.encode(texts)


def score_shard(ids: list[str], scored: Scored, column: int) -> ScoreShard:
    """One of the V rewards of P pairs, from those of the texts chosen_0, rejected_0, chosen_1, ..

    `scored.rewards`: [2 P, V]. A pair that lacks the reward of one answer has none.
    """
    rewards = scored.rewards[:, column].reshape(len(ids), 2)
    missing = ~np.isfinite(rewards)
    failures = {}
    for position in np.flatnonzero(missing.any(axis=1)).tolist():
        reasons = [
            f"{name}: {scored.failures[2 * position + side]}"
            for side, name in enumerate(("chosen", "rejected"))
            if missing[position, side]
        ]
        failures[position] = "; ".join(reasons)
    whole = np.where(missing.any(axis=1, keepdims=True), np.nan, rewards)
    return ScoreShard(
        ids,
        np.ascontiguousarray(whole[:, 0]),
        np.ascontiguousarray(whole[:, 1]),
        scored.truncated,
        scored.truncated_responses,
        failures,
    )
