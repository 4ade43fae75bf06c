"""Which workers the machines of the connected Ray cluster can hold, by first fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vcsoup_dist.errors import UserError

ROUNDING = 1e-6  # Ray counts in ten-thousandths


@dataclass(frozen=True)
class WorkerResources:
    """What Ray reserves for one worker."""

    cpus: float = 1
    gpus: float = 0
    custom: Mapping[str, float] = field(default_factory=dict)
    """Resources of the cluster's own, by name."""
    spread: bool = False
    """Whether Ray prefers many nodes to few."""

    @property
    def by_name(self) -> dict[str, float]:
        """Amount by Ray's name of the resource, without zeros."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, **self.custom}
        return {name: amount for name, amount in wanted.items() if amount > 0}


class FreeResources:
    """What the workers so far leave of every live machine."""

    def __init__(self) -> None:
        import ray

        self.by_node = {
            node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]
        }

    def reserve(self, wanted: WorkerResources, node: str | None = None) -> bool:
        """Reserve one worker's resources on `node`, or on the first that has them; False if none.

        Other programs' workers are not known here.
        """
        amounts = wanted.by_name
        for free in [self.by_node.get(node, {})] if node else self.by_node.values():
            if all(free.get(name, 0) + ROUNDING >= amount for name, amount in amounts.items()):
                for name, amount in amounts.items():
                    free[name] = free.get(name, 0) - amount
                return True
        return False


def check_placeable(section: str, wanted: WorkerResources) -> None:
    """Raise UserError where no machine of the cluster can hold one such worker.

    `section`: the part of the recipe that asks for it.
    """
    if FreeResources().reserve(wanted):
        return
    amounts = wanted.by_name
    asked = " and ".join(f"{amount:g} {name}" for name, amount in amounts.items())
    keys = {"CPU": "cpus_per_actor", "GPU": "gpus_per_actor"}
    named = dict.fromkeys(keys.get(name, "resources_per_actor") for name in amounts)
    raise UserError(
        f"{', '.join(f'{section}.{key}' for key in named)}: no machine of the Ray cluster has "
        f"{asked} for one actor. A cluster that starts nodes by itself must have one of that kind "
        "from the beginning (`min_workers: 1` of its node type)"
    )
