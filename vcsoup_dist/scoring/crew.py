"""The actors of one pool at work: who has which shard, and who is to blame for a death.

An actor that dies is replaced, without limit, by a new one wherever there is room. Ray is not asked
to restart it: its shards would wait with it, where now they go to whoever is free, and nobody would
tell us who died at what. Where actors in the same place fail to load the reward again and again,
as on a broken machine, the pool goes on without that place.

An actor has one shard at work and encodes the following one, so a death makes suspects of both. A
suspect runs alone from then on; only deaths of an actor that had nothing else are counted against a
shard.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.identity import Located
from vcsoup_dist.launch.placement import Room, demand_of
from vcsoup_dist.recipe import ActorPool, CallableReward, ClassifierReward
from vcsoup_dist.scoring.actor_errors import is_out_of_memory, mendable
from vcsoup_dist.scoring.actors import ScoringActor, ShardTask, Unscored
from vcsoup_dist.scoring.groups import too_many_unscored
from vcsoup_dist.scoring.overdue import Overdue
from vcsoup_dist.scoring.quarantine import SetAside, write_quarantine

log = logging.getLogger("vcsoup")

COLOURS = re.compile(r"\x1b\[\d+m")
ATTEMPTS = 3  # at one shard, or at loading the reward
HOPELESS = 10  # shards set aside, and fewer finished: the others are not tried
LESS = "lower scoring.tokens_per_batch or scoring.shard_pairs, or give it more memory"


@dataclass(frozen=True)
class Pool:
    """All shards that one reward model scores in this run."""

    name: str
    rewards: Sequence[ClassifierReward | CallableReward]
    """Of its V values."""
    source: Located
    tokens_per_batch: int | None
    actors: ActorPool
    key: str
    """Where the recipe says `actors`."""
    tasks: Sequence[ShardTask]
    most_unscored: dict[str, int]
    """Product -> pairs of it that may lack a reward."""
    begun: bool
    """Whether a former run has left rewards of some pairs."""
    quarantine: Path
    """File that lists the shards that are set aside."""


@dataclass(eq=False)
class _Seat:
    """An actor, and what it has to do."""

    actor: Any
    failures: int
    """Actors in this place, one after the other, that did not come so far as to load the reward."""
    node: str | None = None
    """The machine; None while the actor waits for room."""
    place: str = ""
    """Where its process is found."""
    loaded: bool = False
    task: ShardTask | None = None
    following: ShardTask | None = None
    announced: ShardTask | None = None
    """The last shard that the actor was told to encode ahead; another may have taken it since."""
    alone: bool = False
    """Whether `task` is all that the actor has been at since it was given."""


class Crew:
    """The actors of a pool: `fitting` from the start, and up to `size` as `grow` finds room."""

    def __init__(self, pool: Pool, size: int, fitting: int) -> None:
        self.pool = pool
        self.size = size
        self.demand = demand_of(pool.actors)
        self.seats: list[_Seat] = []
        self.pending: dict[Any, _Seat] = {}
        """Ray's reference to a result -> whose it will be."""
        self.queue = deque(pool.tasks)
        self.suspects: deque[ShardTask] = deque()
        self.attempts: Counter[ShardTask] = Counter()
        self.set_aside: list[SetAside] = []
        self.finished = 0
        self.seen: Counter[str] = Counter()
        """Product -> its pairs that this run has finished."""
        self.unscored: Counter[str] = Counter()
        """Those of them that have no reward."""
        self.has_loaded = False
        """Whether any actor ever loaded the reward: it is not the reward then that is broken."""
        self.overdue = Overdue()
        for _ in range(fitting):
            self._hire(failures=0)

    @property
    def waiting_for_room(self) -> int:
        """Actors that Ray has not found a place for yet."""
        return sum(seat.node is None for seat in self.seats)

    @property
    def lacks_actors(self) -> bool:
        """Whether shards wait that nobody has, and more actors may be hired for them."""
        return bool(self.queue) and len(self.seats) < self.size

    def grow(self, room: Room) -> None:
        """Hire while the cluster has room: nodes may have joined it."""
        while self.lacks_actors and room.take(self.demand):
            self._hire(failures=0)

    def is_done(self) -> bool:
        """Whether no shard is left to score."""
        at_work = any(seat.task is not None for seat in self.seats)
        return not (self.queue or self.suspects or at_work)

    def tell_of_overdue(self) -> None:
        """Log which shards do not come back, and where they are."""
        advice = "; see its line by `py-spy dump` there"
        if isinstance(self.pool.rewards[0], CallableReward):
            advice += ", or give what the function waits for a time limit"
        for line in self.overdue.lines():
            log.warning("%s%s", line, advice)

    def stop(self) -> None:
        """End all actors."""
        for seat in list(self.seats):
            self._dismiss(seat)

    def take(self, reference: Any, advance: Callable[[float], None]) -> None:
        """Take one result, and give all actors that are free something to do.

        Raises UserError for what no other shard or actor would mend.
        """
        seat = self.pending.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._failed(seat, error)
        except ray.exceptions.RayError as error:
            self._died(seat, error)
        else:
            self._succeeded(seat, result, advance)
        self._feed()

    def _hire(self, failures: int) -> None:
        pool = self.pool
        kind = ray.remote(max_restarts=0, max_task_retries=0)(ScoringActor).options(
            num_cpus=pool.actors.cpus_per_actor,
            num_gpus=pool.actors.gpus_per_actor,
            resources=pool.actors.resources_per_actor,
            scheduling_strategy={"pack": "DEFAULT", "spread": "SPREAD"}[pool.actors.placement],
        )
        gpu = pool.actors.gpus_per_actor > 0
        seat = _Seat(kind.remote(pool.rewards, pool.source, pool.tokens_per_batch, gpu), failures)
        self.seats.append(seat)
        self.pending[seat.actor.place.remote()] = seat

    def _dismiss(self, seat: _Seat) -> None:
        self.seats.remove(seat)
        self.overdue.drop(seat)
        self.pending = {ref: each for ref, each in self.pending.items() if each is not seat}
        ray.kill(seat.actor)

    def _succeeded(self, seat: _Seat, result: Any, advance: Callable[[float], None]) -> None:
        if seat.node is None:
            seat.node, seat.place = result
            self.overdue.begin(seat, f"{self.pool.name}: loading the reward", seat.place)
            self.pending[seat.actor.load.remote()] = seat
        elif not seat.loaded:
            seat.loaded = True
            self.overdue.drop(seat)
            if not self.has_loaded:
                log.info("%s", result)
                self.has_loaded = True
        else:
            task, seat.task = seat.task, None
            assert task is not None
            self.overdue.finish(seat)
            self._check_unscored(task, result)
            self.finished += 1
            advance(task.pairs.rows)

    def _check_unscored(self, task: ShardTask, unscored: Sequence[Unscored]) -> None:
        """Raise UserError where too many pairs have no reward, or none of a whole first shard."""
        first = {each.product: each for each in unscored}
        for output in task.outputs:
            self.seen[output.product] += task.pairs.rows
            if output.product not in first:
                continue
            missing = first[output.product]
            self.unscored[output.product] += missing.pairs
            pairs = self.unscored[output.product]
            none = pairs == self.seen[output.product] and not self.pool.begun
            if none and pairs >= max(each.pairs.rows for each in self.pool.tasks):
                raise UserError(
                    f"{self.pool.name}: none of the first {pairs} pairs of {output.product} has a "
                    f"reward; {missing.first}"
                )
            if pairs > self.pool.most_unscored[output.product]:
                raise too_many_unscored(self.pool.name, output.file.parent, pairs, missing.first)

    def _failed(self, seat: _Seat, error: Any) -> None:
        """An exception in an actor, whose process may be spoilt by it (CUDA's are)."""
        cause = error.cause
        what = seat.task.name if seat.task else self.pool.name
        line = mendable(cause, what)
        if line is not None and (seat.task is not None or not self.has_loaded):
            raise line
        reason = reason_of(cause)
        if seat.task is None:
            self._replace(seat, reason)
            return
        if is_out_of_memory(cause):
            reason = f"{reason}; {LESS}"
        if seat.following is not None:
            self.queue.appendleft(seat.following)
        self._blame(seat.task, reason, COLOURS.sub("", str(error)))
        self._replace(seat, reason)

    def _died(self, seat: _Seat, error: Exception) -> None:
        words = " ".join(COLOURS.sub("", str(error)).split())
        if getattr(error, "actor_init_failed", False):
            # Such as an import that fails; Ray gives the exception as text only.
            reason = f"the scoring actor cannot be started: {words[-300:]}"
        else:
            reason = f"the scoring actor died {ATTEMPTS} times at it"
            if "memory" in words:  # which Ray names where a process was killed
                reason += f"; out of memory? {LESS if seat.task else 'give it more memory'}"
            if seat.task is None:
                reason += f" ({words[:300]})"
        log.warning("%s: a scoring actor died, another takes its place", self.pool.name)
        if seat.task is not None and seat.alone:
            self._blame(seat.task, reason, words)
        else:
            self.suspects += [each for each in (seat.task, seat.following) if each is not None]
        self._replace(seat, reason)

    def _blame(self, task: ShardTask, reason: str, details: str) -> None:
        self.attempts[task] += 1
        if self.attempts[task] < ATTEMPTS:
            self.suspects.append(task)
            return
        log.error("%s: SET ASIDE: %s", task.name, reason)
        self.set_aside.append(SetAside(task, reason, details))
        write_quarantine(self.pool.quarantine, self.set_aside)
        if len(self.set_aside) >= HOPELESS and len(self.set_aside) > self.finished:
            log.error("%s: too many shards are set aside; not trying the others", self.pool.name)
            self.queue.clear()
            self.suspects.clear()
            for seat in self.seats:
                seat.following = None

    def _replace(self, seat: _Seat, reason: str) -> None:
        """Another actor in the place of one that failed or died; `reason`: why.

        Where no actor in this place comes so far as to load the reward, the others go on without
        it. Raises UserError where that is no better in any other place.
        """
        failures = 0 if seat.loaded else seat.failures + 1
        self._dismiss(seat)
        if failures == ATTEMPTS:
            if all(each.failures and not each.loaded for each in self.seats):
                raise UserError(f"{self.pool.name}: loading the reward: {reason}")
            log.warning(
                "%s: going on with %d actors; another place fails to load the reward: %s",
                self.pool.name, len(self.seats), reason,
            )  # fmt: skip
            self.size = len(self.seats)
        elif len(self.seats) < min(self.size, self._outstanding()):
            self._hire(failures)

    def _outstanding(self) -> int:
        """Shards that are not finished."""
        at_work = [each for seat in self.seats for each in (seat.task, seat.following)]
        return len(self.queue) + len(self.suspects) + sum(each is not None for each in at_work)

    def _feed(self) -> None:
        """Give every free actor a shard; end those for which there is none."""
        for seat in [each for each in self.seats if each.task is None]:
            if not (self.queue or self.suspects or seat.following or self._followers()):
                self._dismiss(seat)  # others, of other pools too, may need its room
            elif seat.loaded:
                self._give(seat)

    def _give(self, seat: _Seat) -> None:
        encoding, seat.following = seat.following, None
        if self.suspects and encoding is None:
            # First: what is wrong with all shards should show soon.
            seat.task = self.suspects.popleft()
        elif encoding is not None:
            # A suspect is next, in an actor that encodes nothing else.
            seat.task = encoding
            seat.following = None if self.suspects else self._next()
        elif self.queue:
            seat.task, seat.following = self._next(), self._next()
        else:
            other = self._followers()[0]
            seat.task, other.following = other.following, None
        in_vain = seat.announced not in (None, seat.task)
        seat.alone = seat.following is None and not in_vain
        seat.announced = seat.following
        assert seat.task is not None
        self.overdue.begin(seat, seat.task.name, seat.place)
        self.pending[seat.actor.score.remote(seat.task, seat.following)] = seat

    def _next(self) -> ShardTask | None:
        return self.queue.popleft() if self.queue else None

    def _followers(self) -> list[_Seat]:
        """Actors at work whose following shard another may take."""
        return [each for each in self.seats if each.task and each.following]
