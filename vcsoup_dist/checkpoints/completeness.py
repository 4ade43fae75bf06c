"""Whether a model's tensors are all that its config promises, from names and shapes alone.

Policies that all lack the same tensor agree with each other, and a loader makes the tensor up at
random. What an architecture needs is known to transformers alone, whose import takes seconds; but
layers are numbered and alike, and a head that is not tied has as many rows as the embedding.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from vcsoup_dist.checkpoints.config_agreement import short
from vcsoup_dist.checkpoints.config_defaults import declared_keys

_LAYER = re.compile(r"((?:.*\.)?(?:layers?|h|blocks?))\.(\d{1,6})\.(.+)")
_VARIED = (
    "block_configs", "layers_block_type", "block_types", "num_kv_shared_layers", "moe_layers",
    "hybrid_override_pattern", "attn_layer_indices", "full_attn_idxs", "layer_group_size",
)  # fmt: skip
"""Keys of models some of whose layers lack what the others have."""

_UNLIKE = ("hrm_text", "modernbert-decoder", "moshi")
"""Types whose first layer is unlike the others, or that count layers or heads in another way."""

_LLAMA_LIKE = ("gemma", "granite", "llama", "mistral", "qwen2", "qwen3", "smollm3")
_IN_A_LAYER = (
    "input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight",
    "self_attn.v_proj.weight", "self_attn.o_proj.weight", "post_attention_layernorm.weight",
    "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
)  # fmt: skip
"""What every layer of these types has."""

Layers = Mapping[int, frozenset[str]]
"""Number of a layer -> names of its tensors, without the start that they share."""


def missing_part(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> str | None:
    """What a model of this config lacks for sure; None where nothing is seen to be.

    shapes: of all tensors by name, further names of tied ones included. A model with code of its
    own, or that is not a causal language model, is not checked.
    """
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    if (
        config.get("auto_map")
        or config.get("model_type") in _UNLIKE
        or not str(named).endswith("ForCausalLM")
    ):
        return None
    return (
        _wrapper(shapes)
        or _lacking_layers(shapes, config)
        or _lacking_norm(shapes)
        or _lacking_head(shapes, config)
    )


def _wrapper(names: Collection[str]) -> str | None:
    """A start of all names under which a whole model lies."""
    first = {name.partition(".")[0] for name in names}
    if len(first) != 1:
        return None
    (start,) = first
    if any(
        re.fullmatch(rf"{re.escape(start)}\.(lm_head|embed_out)\.weight", name) for name in names
    ):
        return f"every name begins with {start!r}, which no loader expects; save it without"
    return None


def _lacking_layers(names: Collection[str], config: Mapping[str, Any]) -> str | None:
    stacks: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if found := _LAYER.fullmatch(name):
            stacks[found[1]][int(found[2])].add(found[3])
    if not stacks:
        return None
    start, numbered = max(stacks.items(), key=lambda stack: len(stack[1]))
    layers = {number: frozenset(rest) for number, rest in numbered.items()}
    key = "num_hidden_layers" if "num_hidden_layers" in config else "n_layer"
    count = config.get(key, max(layers) + 1)
    if type(count) is not int or count < 1:
        return f"its config.json says {key}: {short(count)}, which is not a number of layers"
    absent = next((i for i in range(min(count, max(layers) + 1)) if i not in layers), None)
    if absent is not None:
        return f"there is no tensor of {start}.{absent}"
    # Layers that predict further tokens stand behind the others.
    ahead = any("nextn" in key or "mtp" in key for key in config)
    if len(layers) < count or (len(layers) > count and not ahead):
        return f"there are {len(layers)} layers, its config.json says {short(count)}"
    if config.get("model_type") in _LLAMA_LIKE:
        for number, present in sorted(layers.items()):
            if missing := [name for name in _IN_A_LAYER if name not in present]:
                return f"there is no {start}.{number}.{missing[0]}"
    return None if any(config.get(key) for key in _VARIED) else _uneven(start, layers)


def _uneven(start: str, layers: Layers) -> str | None:
    """A tensor that most layers have, and another one, otherwise like them, has not."""
    (usual, count), *_ = Counter(layers.values()).most_common(1)
    short = [number for number, names in sorted(layers.items()) if names < usual]
    if 2 * count <= len(layers) or not short:
        return None
    missing = min(usual - layers[short[0]])
    return f"there is no {start}.{short[0]}.{missing}, which {count} of {len(layers)} layers have"


def _lacking_norm(names: Collection[str]) -> str | None:
    """The last norm of Llama and its many kin."""
    kin = "model.layers.0.post_attention_layernorm.weight" in names
    if kin and "model.norm.weight" not in names and "model.embed_tokens.weight" in names:
        others = [name for name in names if "norm" in name and not _LAYER.fullmatch(name)]
        return None if others else "there is no model.norm.weight"
    return None


def _lacking_head(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> str | None:
    rows, tied = config.get("vocab_size"), config.get("tie_word_embeddings")
    if tied is None:
        declared = declared_keys(str(config.get("model_type"))) or {}
        tied = declared.get("tie_word_embeddings")
    sides = [side for key in _SIDES if type(side := config.get(key)) is int]
    if type(rows) is not int or rows <= max(sides, default=0):
        return None
    tables = [name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == rows]
    if not tables:
        return f"there is no embedding, none has the {rows} rows of vocab_size"
    if tied is False and len(tables) == 1:
        return (
            f"{tables[0]} alone has the {rows} rows of vocab_size, and tie_word_embeddings is "
            "false: the embedding or the head is not there"
        )
    return None


_SIDES = ("hidden_size", "intermediate_size", "n_embd", "n_inner")
"""Whose matrices must not be taken for tables of the vocabulary."""
