"""Policies that all lack the same tensor: no soup of them is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vcsoup_dist.checkpoints.completeness import missing_part
from vcsoup_dist.checkpoints.layout import read_layout
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.merge import merge

pytestmark = pytest.mark.models

ARCHITECTURES = [
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "opt",
    "bloom", "falcon", "phi", "phi3", "olmo", "olmo2", "granite", "cohere", "starcoder2", "mamba",
    "mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "stablelm", "smollm3", "lfm2", "mpt",
    "gptj", "glm4", "exaone4", "gemma",
]  # fmt: skip
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 96, "head_dim": 8, "n_embd": 32, "n_layer": 4,
    "n_head": 4, "d_model": 32, "n_layers": 4, "n_heads": 4, "ffn_dim": 48, "rotary_dim": 8,
    "word_embed_proj_dim": 32, "moe_intermediate_size": 16, "num_local_experts": 4,
    "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "state_size": 4, "shared_expert_intermediate_size": 16,
    "decoder_sparse_step": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A Llama whose head is not tied."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = LlamaConfig(vocab_size=96, **{name: SMALL[name] for name in names})
    folder = tmp_path_factory.mktemp("whole") / "policy"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def without(whole: Path, folder: Path, *ends: str, **config: object) -> Path:
    """A copy that lacks the tensors of these ends of names."""
    shutil.copytree(whole, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: each for name, each in tensors.items() if not name.endswith(ends)}
    assert len(kept) < len(tensors) or config
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    return folder


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        (("layers.1.input_layernorm.weight",), r"no model\.layers\.1\.input_layernorm\.weight"),
        (("layers.3.mlp.up_proj.weight",), r"no model\.layers\.3\.mlp\.up_proj\.weight"),
        (("mlp.up_proj.weight",), r"no model\.layers\.0\.mlp\.up_proj\.weight"),
        (("k_proj.weight", "v_proj.weight"), r"no model\.layers\.0\.self_attn\.k_proj"),
        (("input_layernorm.weight",), r"no model\.layers\.0\.input_layernorm\.weight"),
        (("model.norm.weight",), r"there is no model\.norm\.weight"),
        (("lm_head.weight",), "the embedding or the head is not there"),
        (("embed_tokens.weight",), "the embedding or the head is not there"),
        (("embed_tokens.weight", "lm_head.weight"), "there is no embedding"),
    ],
)
def test_a_tensor_that_all_policies_lack_is_named(whole, tmp_path, ends, says):
    policies = [without(whole, tmp_path / name, *ends) for name in ("a", "b")]
    with pytest.raises(UserError, match=says):
        merge(policies, out=tmp_path / "soup", weights=[[0.5, 0.5]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_layers_that_all_policies_lack_are_told(whole, tmp_path):
    layers = {
        number: tuple(
            name for name in read_layout(whole) if name.startswith(f"model.layers.{number}.")
        )
        for number in range(4)
    }
    last = [without(whole, tmp_path / name, *layers[3]) for name in ("a", "b")]
    with pytest.raises(UserError, match="there are 3 layers, its config.json says 4"):
        merge(last, out=tmp_path / "soup", weights=[[0.5, 0.5]])
    inner = [without(whole, tmp_path / name, *layers[1]) for name in ("c", "d")]
    with pytest.raises(UserError, match=r"no tensor of model\.layers\.1"):
        merge(inner, out=tmp_path / "soup", weights=[[0.5, 0.5]])


@pytest.mark.parametrize("layers", [3, 5, 0, -1, 10**4000, True, None, "4", 4.0, [], {}])
def test_a_number_of_layers_that_the_files_do_not_have_is_refused(whole, tmp_path, layers):
    policies = [
        without(whole, tmp_path / name, "no such name", num_hidden_layers=layers)
        for name in ("a", "b")
    ]
    with pytest.raises(
        UserError, match="there are 4 layers|which is not a number of layers"
    ) as told:
        merge(policies, out=tmp_path / "soup", weights=[[0.5, 0.5]])
    assert len(str(told.value)) < 600


@pytest.mark.parametrize("side", ["32", None, [], 1e999])
def test_a_width_that_is_no_number_is_no_traceback(whole, side):
    shapes = {name: spec.shape for name, spec in read_layout(whole).items()}
    config = json.loads((whole / "config.json").read_text()) | {"hidden_size": side}
    assert missing_part(shapes, config) is None


def test_names_under_one_more_start_are_refused():
    shapes = {
        "actor.model.embed_tokens.weight": (96, 8),
        "actor.model.layers.0.mlp.up_proj.weight": (16, 8),
        "actor.lm_head.weight": (96, 8),
    }
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 96}
    assert "begins with 'actor'" in str(missing_part(shapes, config))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_whole_models_lack_nothing(kind, tied, tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    known = AutoConfig.for_model(kind).to_dict()
    small = {key: value for key, value in SMALL.items() if key in known}
    config = AutoConfig.for_model(kind, **small, tie_word_embeddings=tied)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    shapes = {name: spec.shape for name, spec in read_layout(tmp_path).items()}
    assert missing_part(shapes, json.loads((tmp_path / "config.json").read_text())) is None
