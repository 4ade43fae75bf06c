"""Which actors fit on the machines of the connected Ray cluster, by first fit."""

from __future__ import annotations

from collections.abc import Mapping

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import ActorPool

ROUNDING = 1e-6  # Ray counts in ten-thousandths


def demand_of(pool: ActorPool) -> dict[str, float]:
    """What one actor of a pool asks Ray for, by the name of the resource."""
    wanted = {"CPU": pool.cpus_per_actor, "GPU": pool.gpus_per_actor, **pool.resources_per_actor}
    return {name: amount for name, amount in wanted.items() if amount > 0}


class Room:
    """What the actors that have taken theirs leave of every machine that is alive."""

    def __init__(self) -> None:
        import ray

        self.free = {
            node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]
        }

    def take(self, demand: Mapping[str, float], node: str | None = None) -> bool:
        """Take the room of one actor on `node`, or the first with enough; False where none has."""
        for free in [self.free.get(node, {})] if node else self.free.values():
            if all(free.get(name, 0) + ROUNDING >= amount for name, amount in demand.items()):
                for name, amount in demand.items():
                    free[name] = free.get(name, 0) - amount
                return True
        return False


def check_room(section: str, demand: Mapping[str, float]) -> None:
    """Raise UserError where no machine of the cluster has what one actor asks for.

    `section`: the part of the recipe that says it.
    """
    demand = {name: amount for name, amount in demand.items() if amount > 0}
    if Room().take(demand):
        return
    asked = " and ".join(f"{amount:g} {name}" for name, amount in demand.items())
    keys = {"CPU": "cpus_per_actor", "GPU": "gpus_per_actor"}
    named = dict.fromkeys(keys.get(name, "resources_per_actor") for name in demand)
    raise UserError(
        f"{', '.join(f'{section}.{key}' for key in named)}: no machine of the Ray cluster has "
        f"{asked} for one actor. A cluster that starts nodes by itself must have one of that kind "
        "from the beginning (`min_workers: 1` of its node type)"
    )
