"""What of a recipe decides the products that a model is trained for: theta_0, settings, engine."""

from __future__ import annotations

from typing import Any

from vcsoup_dist.identity import Located
from vcsoup_dist.pipeline.graph import Graph
from vcsoup_dist.pipeline.sources import find_model
from vcsoup_dist.recipe import Recipe, Training
from vcsoup_dist.training.deepspeed_config import find_deepspeed_config

NOT_CONTENT = {
    *("activation_offload", "attention", "checkpoint_every", "checkpoints_kept", "deepspeed"),
    *("evaluate_every", "nvme_path"),
}
"""Keys of `training` that say where and how a policy is trained, not what it becomes."""


def model_of(graph: Graph) -> Located:
    """The recipe's model, theta_0 or what it is made from."""
    recipe = graph.recipe
    return find_model(recipe, graph.hashes, recipe.model, recipe.revision, "model")


def base_of(graph: Graph) -> dict[str, Located]:
    """theta_0 as a source, where it is not a product."""
    return {} if graph.of("sft") else {"model": model_of(graph)}


def base_identity(graph: Graph) -> Any:
    """Of theta_0, where it is not a product."""
    return None if graph.of("sft") else model_of(graph).identity


def deepspeed_of(recipe: Recipe) -> Located:
    """The engine's configuration."""
    return Located(str(find_deepspeed_config(recipe)), None, None)


def content_of(training: Training) -> dict[str, Any]:
    """The settings that decide what a policy becomes."""
    without = set(NOT_CONTENT)
    if training.export == "best":  # one of the checkpoints
        without.remove("checkpoint_every")
    if training.objective != "simpo":
        without.add("simpo_margin")
    if training.objective == "sft":
        without.add("beta")
    return training.model_dump(mode="json", exclude=without)
