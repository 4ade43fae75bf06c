"""Whether a base's config and architecture can be trained, before any weights are loaded."""

from __future__ import annotations

from typing import Any

import torch

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.forward.hidden import can_pack, longest_together

CAUSAL = "AutoModelForCausalLM"
QUANTISED = "so its weights are quantised; name the model in bf16 or fp32"


def open_config(source: str, revision: str | None) -> Any:
    """The config of a base; UserError where transformers cannot read it.

    No code that comes with a model is run.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    try:
        settings, _ = PretrainedConfig.get_config_dict(source, revision=revision)
    except Exception as error:  # not JSON, not an object, or no file
        raise UserError(f"{source}: its config.json cannot be read: {reason_of(error)}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{source}: its config.json is not a JSON object")
    if not settings:
        raise UserError(f"{source}: its config.json is missing or empty")
    _refuse_quantised(source, settings)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(f"{source}: {_unknown(kind, settings)}")
    try:
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # types and values that its class refuses
        raise UserError(f"{source}: its config.json is wrong: {reason_of(error)}") from error


def check_architecture(config: Any, max_length: int) -> Any:
    """The model of a config on the meta device; UserError where it cannot be trained on packs."""
    from transformers import AutoModelForCausalLM

    source, kind = config.name_or_path or type(config).__name__, config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{source}: {kind} is an encoder with a decoder; only decoders can be trained"
        )
    text = config.get_text_config()
    if getattr(text, "num_hidden_layers", 1) < 1:
        raise UserError(
            f"{source}: its config.json says num_hidden_layers: {text.num_hidden_layers}"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # a config whose numbers do not fit, or no causal model
        if text is not config:
            raise UserError(_of_several_parts(source, kind)) from error
        raise UserError(
            f"{source}: its config.json makes no causal language model: {reason_of(error)}"
        ) from error
    named = (config.architectures or [""])[0]
    if named.endswith(("Classification", "QuestionAnswering", "RewardModel")):
        raise UserError(f"{source}: is a {named} by its config.json; name a causal language model")
    if not can_pack(model):
        if text is not config:
            raise UserError(_of_several_parts(source, kind))
        raise UserError(
            f"{source}: {type(model).__name__} is not a decoder with a replaceable attention "
            "kernel in every layer, so it cannot be trained on packs"
        )
    limit = longest_together(config)
    if limit is not None and max_length > limit:
        raise UserError(
            f"training.max_length: positions of {type(model).__name__} beyond {limit} depend on "
            f"what else is in the pack; set it to {limit} or less"
        )
    return model


def has_own_code(config: Any) -> bool:
    """Whether Python code for a causal model comes with it."""
    return CAUSAL in (getattr(config, "auto_map", None) or {})


def _of_several_parts(source: str, kind: str) -> str:
    return (
        f"{source}: {kind} has other parts than text; save its text model in a separate folder "
        "and name that"
    )


def _unknown(kind: Any, settings: dict[str, Any]) -> str:
    from transformers import __version__

    if kind is None:
        return "its config.json names no model_type, so the architecture of its weights is unknown"
    if settings.get("auto_map"):
        return (
            f"model type {kind!r} comes with its own Python code, which training does not run; "
            f"transformers {__version__} has no such type"
        )
    return (
        f"model type {kind!r} is unknown to transformers {__version__}; install a version that "
        "knows it, or correct a spelling mistake in its config.json"
    )


def _refuse_quantised(source: str, settings: dict[str, Any]) -> None:
    dtype = settings.get("dtype") or settings.get("torch_dtype")
    if isinstance(dtype, str) and ("float8" in dtype or "int" in dtype):
        raise UserError(f"{source}: its config.json says dtype: {dtype}, {QUANTISED}")
    parts = (settings, *(part for part in settings.values() if isinstance(part, dict)))
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            if part.get(key) is not None:
                section = part[key]
                how = section.get("quant_method") if isinstance(section, dict) else None
                raise UserError(
                    f"{source}: its config.json has a {key} ({how or 'without a method'}), "
                    f"{QUANTISED}, or remove the key where its weights are whole"
                )
