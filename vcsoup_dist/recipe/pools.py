"""Ray actors and what is set aside for each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from vcsoup_dist.recipe.section import Section

SMALLEST_AMOUNT = 0.0001
RESERVED_RESOURCES = {
    "CPU": "give `cpus_per_actor`",
    "GPU": "give `gpus_per_actor`",
    "memory": "actors are placed by CPUs, GPUs and resources of your own alone",
    "object_store_memory": "actors put nothing into the object store",
    "bundle": "Ray keeps that name for itself",
}
"""Names that Ray refuses as those of custom resources, and what to do instead."""


def _countable(amount: float) -> float:
    if 0 < amount < SMALLEST_AMOUNT:
        raise ValueError(f"Ray counts in steps of {SMALLEST_AMOUNT:g}; give 0 or at least that")
    return amount


Amount = Annotated[float, Field(ge=0), AfterValidator(_countable)]
"""Of something that Ray sets aside for an actor."""


class ActorPool(Section):
    """Ray actors that hold one reward, and what Ray sets aside for each of them."""

    actors: int = Field(1, ge=1)
    """Ray actors per reward model."""
    cpus_per_actor: Amount = 1
    """CPUs for each actor."""
    gpus_per_actor: Annotated[Amount, Field(le=1)] = 0
    """A GPU, or a share of one, for each actor; 0 scores on the CPU."""
    resources_per_actor: dict[str, Annotated[Amount, Field(gt=0)]] = {}
    """Custom resources of the cluster's nodes for each actor, by name."""
    placement: Literal["pack", "spread"] = "pack"
    """Ray's preference: few nodes, or many."""

    @field_validator("resources_per_actor")
    @classmethod
    def _custom_resources(cls, resources: dict[str, float]) -> dict[str, float]:
        for name in resources:
            if name in RESERVED_RESOURCES:
                raise ValueError(f"`{name}` is not a custom resource; {RESERVED_RESOURCES[name]}")
        return resources


class Scoring(ActorPool):
    """Stage 1, and the actors of every reward that has no `pool` of its own."""

    shard_pairs: int = Field(512, ge=1)
    """Pairs per shard, the unit of work and of recovery. A shard has at most 65,536."""
    tokens_per_batch: int | None = Field(None, ge=1)
    """Token budget of one forward of a reward model. Absent: 1,024 on a CPU, 16,384 on a GPU."""
    max_bad_rows: float = Field(0.05, ge=0, le=1)
    """Share of rows that cannot be used above which a dataset is refused, and share of pairs
    without a reward above which a reward is."""
