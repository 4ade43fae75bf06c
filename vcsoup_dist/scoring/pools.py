"""Pools of Ray actors, one per reward model, side by side as far as the cluster has room.

Why raw actors: Ray Data's actors starve its own read tasks on a small machine, and
`ray.util.ActorPool` loses the work of an actor that dies.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import ray

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.placement import Room, check_room, demand_of
from vcsoup_dist.scoring.crew import Crew, Pool
from vcsoup_dist.scoring.quarantine import error_of

log = logging.getLogger("vcsoup")

QUIET = 60.0  # seconds without any result, after which the log says who waits for what


def run_pools(
    pools: Sequence[Pool], advance: Callable[[float], None]
) -> Generator[Pool, None, None]:
    """Score all shards on the connected Ray cluster; yields each pool whose shards are all scored.

    Pools start in the given order. `advance` is told the pairs of every finished shard. Raises
    UserError at once for what spoils every shard, and in the end where shards were set aside. All
    actors are ended when this ends or is closed.
    """
    for pool in pools:
        check_room(pool.key, demand_of(pool.actors))
    waiting = deque(pools)
    running: list[Crew] = []
    errors: list[str] = []
    try:
        while waiting or running:
            _start_what_fits(waiting, running)
            _grow(running)
            for reference, crew in _results(running):
                if reference in crew.pending:  # its actor may have been ended meanwhile
                    crew.take(reference, advance)
            for crew in [each for each in running if each.is_done()]:
                running.remove(crew)
                crew.stop()
                if crew.set_aside:
                    pool = crew.pool
                    error = error_of(pool.name, crew.set_aside, len(pool.tasks), pool.quarantine)
                    errors.append(str(error))
                else:
                    yield crew.pool
    finally:
        for crew in running:
            crew.stop()
    if errors:
        raise UserError("; ".join(errors))


def _start_what_fits(waiting: deque[Pool], running: list[Crew]) -> None:
    """Start pools whose actors all fit beside those at work; one by itself with what fits."""
    while waiting:
        pool = waiting[0]
        room = _room_beside(running)
        wanted = min(pool.actors.actors, len(pool.tasks))
        fitting = sum(room.take(demand_of(pool.actors)) for _ in range(wanted))
        if fitting < wanted and running:
            return
        if fitting < wanted:
            log.warning(
                "%s: the Ray cluster has room for %d of %d actors", pool.name, fitting, wanted
            )
        running.append(Crew(waiting.popleft(), wanted, max(fitting, 1)))


def _grow(running: Sequence[Crew]) -> None:
    """Let crews that started with too few actors take the room of nodes that joined since."""
    if any(crew.lacks_actors for crew in running):
        room = _room_beside(running)
        for crew in running:
            crew.grow(room)


def _room_beside(running: Sequence[Crew]) -> Room:
    room = Room()
    for crew in running:
        for seat in crew.seats:
            room.take(crew.demand, seat.node)
    return room


def _results(running: Sequence[Crew]) -> list[tuple[Any, Crew]]:
    """Wait for results, and take all that are there."""
    owners = {reference: crew for crew in running for reference in crew.pending}
    began = time.monotonic()
    while True:
        done, _ = ray.wait(list(owners), num_returns=1, timeout=QUIET)
        for crew in running:
            crew.tell_of_overdue()
        if done:
            break
        for crew in running:
            if crew.waiting_for_room:
                log.warning(
                    "%s: %d actors have waited for room on the Ray cluster for %.0f s",
                    crew.pool.name, crew.waiting_for_room, time.monotonic() - began,
                )  # fmt: skip
    done, _ = ray.wait(list(owners), num_returns=len(owners), timeout=0)
    return [(reference, owners[reference]) for reference in done]
