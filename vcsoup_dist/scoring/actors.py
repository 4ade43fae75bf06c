"""Pools of Ray actors that score shards of pairs and write the score files themselves.

Why raw actors: Ray Data's actors starve its own read tasks on a small machine, and
`ray.util.ActorPool` loses the work of an actor that dies. Here Ray restarts a dead actor and runs
its shards again without end; a shard that kills its actor every time is found by counting starts.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.launch.death import die_with_parent
from vcsoup_dist.launch.ray_cluster import check_room
from vcsoup_dist.preferences import Pair
from vcsoup_dist.recipe import CallableReward, ClassifierReward, Scoring
from vcsoup_dist.scoring.pair_files import PairSlice, read_slice
from vcsoup_dist.scoring.rewards import Reward, load_reward
from vcsoup_dist.scoring.score_files import ScoreShard, write_scores
from vcsoup_dist.workspace import hold_while_working

log = logging.getLogger("vcsoup")

IN_FLIGHT = 2  # shards per actor: one at work, one waiting
STARTS = 3  # of one shard, until its actor's deaths are taken for the shard's doing


@dataclass(frozen=True)
class ShardTask:
    """One shard of pairs to score."""

    name: str
    """What errors call it."""
    pairs: PairSlice
    scores: Path
    """File to write."""
    starts: Path
    """Counts, across deaths, how often an actor began with it."""
    workers_lock: Path
    """Lock of the product that the scores belong to."""


@dataclass(frozen=True)
class Pool:
    """All shards that one reward scores in this run."""

    name: str
    reward: ClassifierReward | CallableReward
    source: Located
    tasks: Sequence[ShardTask]
    starts: Path
    """Stem of the files that count how often each of its actors began to load the reward."""


def score_pairs(pairs: Sequence[Pair], reward: Reward) -> ScoreShard:
    """Score chosen and rejected of all pairs in one call, so that they share batches."""
    texts = [(pair.prompt, pair.chosen) for pair in pairs]
    texts += [(pair.prompt, pair.rejected) for pair in pairs]
    names = [f"the chosen answer of pair {pair.id}" for pair in pairs]
    names += [f"the rejected answer of pair {pair.id}" for pair in pairs]
    scored = reward.score(texts, names)
    chosen, rejected = scored.rewards[: len(pairs)], scored.rewards[len(pairs) :]
    ids = [pair.id for pair in pairs]
    return ScoreShard(ids, chosen, rejected, scored.truncated, scored.truncated_responses)


class ScoringActor:
    """Holds one reward in a process of its own."""

    def __init__(self, pool: Pool, starts: Path, tokens_per_batch: int, gpu: bool) -> None:
        die_with_parent(int(os.environ["RAY_RAYLET_PID"]))
        self.pool = pool
        self.starts = starts
        self.tokens_per_batch = tokens_per_batch
        self.device = "cuda" if gpu else "cpu"
        self.reward: Reward | None = None
        self.held: set[Path] = set()

    def load(self) -> str:
        """Load the reward; returns its description."""
        return self._loaded().description

    def score(self, task: ShardTask) -> None:
        """Write the scores of one shard."""
        if task.workers_lock not in self.held:
            hold_while_working(task.workers_lock)
            self.held.add(task.workers_lock)
        reward = self._loaded()
        with _counting_starts(task.starts, task.name):
            write_scores(task.scores, score_pairs(read_slice(task.pairs), reward))

    def _loaded(self) -> Reward:
        # Not in __init__, whose errors Ray gives back as text only; after a restart by `score`.
        if self.reward is None:
            if isinstance(self.pool.reward, ClassifierReward):
                import torch

                torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
            with _counting_starts(self.starts, f"{self.pool.name}: loading the reward"):
                self.reward = load_reward(
                    self.pool.reward,
                    self.pool.source,
                    device=self.device,
                    tokens_per_batch=self.tokens_per_batch,
                )
        return self.reward


@contextmanager
def _counting_starts(path: Path, what: str) -> Iterator[None]:
    """Count a start in a file that outlives this process; forget them when the work ends."""
    with open(path, "ab") as file:
        file.write(b".")
        starts = file.tell()
    if starts > STARTS:
        raise UserError(
            f"{what}: the scoring actor died {STARTS} times at it; out of memory? "
            "lower scoring.tokens_per_batch or scoring.shard_pairs, or give it more memory"
        )
    yield
    path.unlink()


def run_pools(
    pools: Sequence[Pool], scoring: Scoring, advance: Callable[[float], None]
) -> Iterator[Pool]:
    """Score all shards on the connected Ray cluster; yields each pool when it is done.

    Pools run side by side as far as the cluster has room for their actors, in the given order.
    `advance` is told the pairs of every finished shard. Raises the UserError of a shard; the other
    actors then work on until the Ray job ends.
    """
    check_room("scoring", scoring.cpus_per_actor, scoring.gpus_per_actor)
    total = ray.cluster_resources()
    waiting = deque(pools)
    running: list[_RunningPool] = []

    def has_room(pool: Pool) -> bool:
        actors = sum(len(each.actors) for each in running) + _actor_count(pool, scoring)
        wanted = {"CPU": scoring.cpus_per_actor, "GPU": scoring.gpus_per_actor}
        return all(actors * each <= total.get(kind, 0) for kind, each in wanted.items())

    while waiting or running:
        while waiting and (not running or has_room(waiting[0])):
            running.append(_start(waiting.popleft(), scoring))
        done, _ = ray.wait([ref for pool in running for ref in pool.pending], num_returns=1)
        pool = next(each for each in running if done[0] in each.pending)
        pool.take(done[0], advance)
        if pool.is_done():
            pool.stop()
            running.remove(pool)
            yield pool.pool


def _actor_count(pool: Pool, scoring: Scoring) -> int:
    return min(scoring.actors, len(pool.tasks))


def _start(pool: Pool, scoring: Scoring) -> _RunningPool:
    kind = ray.remote(max_restarts=-1, max_task_retries=-1)(ScoringActor).options(
        num_cpus=scoring.cpus_per_actor, num_gpus=scoring.gpus_per_actor
    )
    running = _RunningPool(pool, deque(pool.tasks))
    for i in range(_actor_count(pool, scoring)):
        starts = pool.starts.with_name(f"{pool.starts.name}-{i}")
        starts.unlink(missing_ok=True)
        actor = kind.remote(pool, starts, scoring.tokens_per_batch, scoring.gpus_per_actor > 0)
        running.actors.append(actor)
        running.pending[actor.load.remote()] = (actor, None)
    for task in pool.tasks:
        task.starts.unlink(missing_ok=True)
    return running


@dataclass
class _RunningPool:
    pool: Pool
    tasks: deque[ShardTask]
    actors: list[Any] = field(default_factory=list)
    pending: dict[Any, tuple[Any, ShardTask | None]] = field(default_factory=dict)
    """Ray's reference to a result -> its actor, and its shard (None: loading the reward)."""
    described: bool = False

    def take(self, reference: Any, advance: Callable[[float], None]) -> None:
        """Take one result and give its actor more to do; only actors that have loaded get any."""
        actor, task = self.pending.pop(reference)
        result = _result(reference, self.pool)
        if task is not None:
            advance(task.pairs.rows)
        elif not self.described:
            log.info("%s", result)
            self.described = True
        for _ in range(IN_FLIGHT if task is None else 1):
            if self.tasks:
                following = self.tasks.popleft()
                self.pending[actor.score.remote(following)] = (actor, following)

    def is_done(self) -> bool:
        return not self.tasks and all(task is None for _, task in self.pending.values())

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor, no_restart=True)


def _result(reference: Any, pool: Pool) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        reason = " ".join(str(error).split())[:500]
        raise UserError(f"{pool.name}: its Ray actor cannot be started: {reason}") from error
