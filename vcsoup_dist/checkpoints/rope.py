"""Rotary positions in a config.json, in the one form that all versions of transformers mean.

transformers 4 has `rope_theta`, `rope_scaling` and others beside each other; 5 has all of them in
`rope_parameters`, for each type of layer where these differ.
"""

from __future__ import annotations

from typing import Any

THETA = 10_000.0
"""What transformers takes where an architecture says nothing else."""

KEYS = (
    "rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "rotary_emb_base",
    "partial_rotary_factor", "rotary_pct", "original_max_position_embeddings",
)  # fmt: skip
_TYPES = {"su": "longrope", "mrope": "default"}


def canonical_rope(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`layer type: {rope_theta, rope_type, ...}`, with "" for all layers.

    defaults: of the architecture, by key.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        return {"": parameters}
    of_layers = defaults.get("default_theta")
    of_layers = of_layers if isinstance(of_layers, dict) else {}
    theta = _first(
        config.get("rope_theta"), config.get("rotary_emb_base"), defaults.get("rope_theta"),
        defaults.get("rotary_emb_base"), defaults.get("default_theta"), of_layers.get("global"),
        THETA,
    )  # fmt: skip
    partial = _first(
        config.get("partial_rotary_factor"), config.get("rotary_pct"),
        defaults.get("partial_rotary_factor"), defaults.get("rotary_pct"), 1.0,
    )  # fmt: skip
    shared = {"rope_theta": theta, "partial_rotary_factor": partial}
    original = config.get("original_max_position_embeddings")
    layered = {name: each for name, each in parameters.items() if isinstance(each, dict)}
    if not layered:
        layered = {"": parameters}
        local = config.get("rope_local_base_freq", of_layers.get("local"))
        if local is not None:
            layered = {"full_attention": parameters, "sliding_attention": {"rope_theta": local}}
    return {name: _one(each, shared, original) for name, each in layered.items()}


def _one(parameters: dict[str, Any], shared: dict[str, Any], original: Any) -> dict[str, Any]:
    given = {key: value for key, value in parameters.items() if value is not None}
    kind = given.pop("rope_type", None) or given.get("type") or "default"
    given.pop("type", None)
    kind = _TYPES.get(kind, kind) if isinstance(kind, str) else kind
    found = shared | given | {"rope_type": kind}
    if kind != "default" and original is not None:
        found.setdefault("original_max_position_embeddings", original)
    return found


def _first(*values: Any) -> Any:
    return next(value for value in values if isinstance(value, (int, float)))
