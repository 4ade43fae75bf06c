"""In what two config.json describe different models, and in what they were only saved differently.

Refused is what changes shapes or the computed function. A key that one of them lacks has the
default of its architecture, as far as the installed transformers says what that is.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from vcsoup_dist.checkpoints.config_defaults import UNKNOWN, declared_keys
from vcsoup_dist.checkpoints.rope import KEYS as ROPE_KEYS
from vcsoup_dist.checkpoints.rope import canonical_rope

SILENT = re.compile(r"_.*|transformers_version|dtype|torch_dtype|use_cache|model_type")
"""How a config was saved, of which every save says something else."""

NOTED = re.compile(
    r"architectures|auto_map|attn_implementation|quantization_config|tokenizer_class|name|author"
    r"|unsloth.*|.*_version|use_flash_attn.*|use_flash_attention.*|pretraining_tp|torchscript"
    r"|(bos|eos|pad|sep|cls|mask|unk|decoder_start|forced_bos|forced_eos)_token_id"
    r"|.*dropout.*|.*pdrop|.*layerdrop|initializer_.*|init_.*|.*_init_std|gradient_checkpointing"
    r"|.*loss_(coef|weight)|output_(attentions|hidden_states|router_logits)|return_dict.*"
    r"|id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params"
    r"|temperature|top_k|top_p|typical_p|do_sample|num_beams|num_beam_groups|min_length"
    r"|max_length|length_penalty|repetition_penalty|diversity_penalty|early_stopping"
    r"|no_repeat_ngram_size|num_return_sequences|bad_words_ids|suppress_tokens|prefix"
    r"|max_position_embeddings|model_max_length|clean_up_tokenization_spaces"
    r"|keys_to_ignore_at_inference|tf_legacy_loss|use_bfloat16|chunk_size_feed_forward"
)
"""How a model is trained, sampled from or labelled: no part of what its weights compute."""

COMPUTED = re.compile(
    r".*(rope|rotary|theta|_act|act_fn|activation|norm|eps|epsilon|softcap|sliding|window|bias"
    r"|scale|scaling|multiplier|query_pre_attn|logit|alibi|heads|head_dim|head_size|layer|hidden_size"
    r"|intermediate_size|vocab_size|expert|moe|router|topk|parallel|residual|position_embedding"
    r"|causal|image_token|video_token|audio_token|n_embd|n_inner|d_model|ffn|mamba|ssm|conv).*"
)
"""What the names of keys that change the computation have in common, for other architectures."""

DERIVED = {"layer_types", "max_window_layers", "sliding_window_pattern", "tie_word_embeddings"}
"""One config may lack what the other has computed from the rest; heads are in the tensors."""

SAME = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh"}
"""Names of one function."""


ABSENT = object()


@dataclass
class Differences:
    """Each item is a short text such as `rope_theta (10000 and 500000)`."""

    refused: list[str] = field(default_factory=list)
    noted: list[str] = field(default_factory=list)


def config_differences(
    one: dict[str, Any], two: dict[str, Any], *, chosen: bool = False, inside: str = ""
) -> Differences:
    """chosen: a person has said whose config is right, so what cannot be known is only noted;
    inside: the key that holds these two, as `text_config`, with a dot."""
    found = Differences()
    kinds = one.get("model_type"), two.get("model_type")
    if None not in kinds and kinds[0] != kinds[1]:
        return Differences([said(f"{inside}model_type", *kinds)])
    kind = kinds[0] or kinds[1]
    declared = declared_keys(kind) if isinstance(kind, str) else None
    rotary = any(each.get(key) for each in (one, two, declared or {}) for key in ROPE_KEYS)
    rotary = rotary or "rope_parameters" in (declared or {})
    one, two = _canonical(one, declared or {}, rotary), _canonical(two, declared or {}, rotary)
    for key in sorted(one.keys() | two.keys()):
        left, right = one.get(key, ABSENT), two.get(key, ABSENT)
        both = key in one and key in two
        if SILENT.fullmatch(key) or both and left == right:
            continue
        name = inside + key
        if isinstance(left, dict) and isinstance(right, dict) and key.endswith("_config"):
            within = config_differences(left, right, chosen=chosen, inside=f"{name}.")
            found.refused += within.refused
            found.noted += within.noted
        elif _changes_the_model(key, one, two, declared, chosen):
            found.refused.append(said(name, left, right))
        elif both or not _is_default(key, one, two, declared):
            found.noted.append(said(name, left, right))
    return found


def _canonical(config: dict[str, Any], declared: dict[str, Any], rotary: bool) -> dict[str, Any]:
    """In the names that all versions mean, and without nulls but for keys that have a default."""
    found = {
        key: value
        for key, value in config.items()
        if (value is not None or declared.get(key) is not None) and key not in ROPE_KEYS
    }
    for layer, each in (canonical_rope(config, declared) if rotary else {}).items():
        of = f" of {layer}" if layer else ""
        if isinstance(each, dict):
            for key, value in each.items():
                found[f"{key if key.startswith('rope_') else f'rope_{key}'}{of}"] = value
        else:
            found["rope_parameters"] = each
    if not config.get("use_sliding_window", declared.get("use_sliding_window", True)):
        for key in ("use_sliding_window", "sliding_window", "max_window_layers"):
            found.pop(key, None)
    for key, value in found.items():
        if isinstance(value, str):
            found[key] = SAME.get(value, value)
    heads, width = found.get("num_attention_heads"), found.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and heads:
        for key, value in (("num_key_value_heads", heads), ("head_dim", width // heads)):
            if found.get(key) is None:
                found[key] = _number(declared.get(key), value)
    return found


def _number(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise


def _changes_the_model(
    key: str,
    one: dict[str, Any],
    two: dict[str, Any],
    declared: dict[str, Any] | None,
    chosen: bool,
) -> bool:
    if key == "max_position_embeddings":
        return _stretches(one) or _stretches(two)
    if NOTED.fullmatch(key):
        return False
    if key in one and key in two:
        if declared is not None:
            return key in declared or bool(COMPUTED.fullmatch(key))
        return bool(COMPUTED.fullmatch(key)) or not chosen
    if key in DERIVED or _is_default(key, one, two, declared):
        return False
    if declared is not None and declared.get(key, UNKNOWN) is not UNKNOWN:
        return True
    return bool(COMPUTED.fullmatch(key)) and not chosen


def _is_default(
    key: str, one: dict[str, Any], two: dict[str, Any], declared: dict[str, Any] | None
) -> bool:
    """Whether what only one of them says is what the other means by saying nothing."""
    value = one[key] if key in one else two[key]
    default = (declared or {}).get(key, UNKNOWN)
    if default is UNKNOWN or default is None:
        return not value or key == "layer_types" and value == ["full_attention"] * len(value)
    return bool(value == default)


def _stretches(config: dict[str, Any]) -> bool:
    """Whether positions are scaled by the longest that the config allows."""
    kinds = [value for key, value in config.items() if key.startswith("rope_type")]
    return any(kind in ("dynamic", "longrope", "yarn") for kind in kinds)


def said(key: str, left: Any, right: Any) -> str:
    """`rope_theta (10000 and 500000)`"""
    return f"{key} ({short(left)} and {short(right)})"


def short(value: Any) -> str:
    """A value in at most 40 characters."""
    if value is ABSENT:
        return "none"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
