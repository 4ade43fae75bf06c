"""A worker that holds one reward model and scores shards of pairs, one after the other."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

import numpy as np

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import WRITE_ERRORS
from vcsoup_dist.forward.answer_text import DROPPED
from vcsoup_dist.identity import Located
from vcsoup_dist.launch.worker import PoolWorker
from vcsoup_dist.locks import shared_by_process
from vcsoup_dist.recipe import CallableReward, ClassifierReward
from vcsoup_dist.records.pairs import read_slice
from vcsoup_dist.records.scores import ScoreShard, write_scores
from vcsoup_dist.scoring.load_reward import load_reward
from vcsoup_dist.scoring.rewards import Reward, Scored, Text
from vcsoup_dist.scoring.tasks import ShardTask, Unscored

PAUSES = (1.0, 5.0, 15.0)  # seconds before another try to load what a file system failed to give
WILL_NOT_PASS = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *WRITE_ERRORS,
)


class ScoringWorker(PoolWorker):
    """Encodes the following shard in a thread of its own while it scores the present one.

    It scores on the process's main thread, since users' functions may need that.
    """

    def __init__(
        self,
        rewards: Sequence[ClassifierReward | CallableReward],
        source: Located,
        tokens_per_batch: int | None,
        gpu: bool,
    ) -> None:
        super().__init__()
        self.settings = rewards
        self.source = source
        self.tokens_per_batch = tokens_per_batch
        self.device = "cuda" if gpu else "cpu"
        self.reward: Reward
        self.encoder = ThreadPoolExecutor(1, "encoder")
        self.ahead: tuple[ShardTask, Future[tuple[list[str], Any]]] | None = None

    def load(self) -> str:
        """Load the reward; returns its description.

        Tries again after each of `PAUSES` what a file system fails to give.
        """
        if isinstance(self.settings[0], ClassifierReward):
            import torch

            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        for pause in PAUSES:
            try:
                return self._load()
            except (UserError, OSError) as error:
                if not may_pass(error):
                    raise
            time.sleep(pause)
        return self._load()

    def _load(self) -> str:
        self.reward = load_reward(
            self.settings, self.source, device=self.device, tokens_per_batch=self.tokens_per_batch
        )
        return self.reward.description

    def run(self, task: ShardTask, following: ShardTask | None) -> list[Unscored]:
        """Write the scores of one shard; encode the following one meanwhile."""
        with ExitStack() as stack:
            for lock in {output.workers_lock for output in task.outputs}:
                stack.enter_context(shared_by_process(lock))
            return self._score(task, following)

    def _score(self, task: ShardTask, following: ShardTask | None) -> list[Unscored]:
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

        The encoding of another announced task has ended when this returns: a task that runs alone
        is then alone in its process.
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


def may_pass(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is a file system's or network's hiccup."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    # Without a number it is no system's: libraries raise OSError for what a model lacks.
    return cause is not None and cause.errno is not None and cause.errno not in WILL_NOT_PASS


def score_shard(ids: list[str], scored: Scored, column: int) -> ScoreShard:
    """One of the V rewards of P pairs, from those of the texts chosen_0, rejected_0, chosen_1, ..

    `scored.rewards`: [2 P, V]. A pair that lacks the reward of one answer has none, and so has one
    of which a reward model did not see an answer whole.
    """
    rewards = scored.rewards[:, column].reshape(len(ids), 2)
    lost = np.zeros(2 * len(ids), dtype=bool)
    lost[sorted(scored.dropped)] = True
    missing = ~np.isfinite(rewards) | lost.reshape(len(ids), 2)
    failures = {}
    for position in np.flatnonzero(missing.any(axis=1)).tolist():
        reasons = [
            f"{name}: {scored.failures.get(2 * position + side, DROPPED)}"
            for side, name in enumerate(("chosen", "rejected"))
            if missing[position, side]
        ]
        failures[position] = "; ".join(reasons)
    whole = np.where(missing.any(axis=1, keepdims=True), np.nan, rewards)
    first = scored.first
    equal = [
        i for i in range(len(first) // 2) if first[2 * i] == first[2 * i + 1] and i not in failures
    ]
    return ScoreShard(
        ids,
        np.ascontiguousarray(whole[:, 0]),
        np.ascontiguousarray(whole[:, 1]),
        scored.truncated,
        scored.truncated_responses,
        len(equal),
        failures,
    )
