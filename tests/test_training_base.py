"""What a base must be before ranks start: its tensors, its numbers, its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import save_tiny_model
from safetensors.torch import load_file, save_file

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Evaluation, Training
from vcsoup_dist.training.base_checks.check import check_base
from vcsoup_dist.training.base_checks.lengths import context_length

pytestmark = pytest.mark.models

TRAINING = Training(max_length=64)
EVALUATION = Evaluation(max_prompt_tokens=32, max_new_tokens=32)


def check(folder: Path, training=TRAINING, evaluation=EVALUATION) -> list[str]:
    return check_base(str(folder), None, training, evaluation)


@pytest.fixture
def copy(tiny_model, tmp_path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "base")


def change_json(file: Path, **changes: object) -> None:
    """Set keys; those that are set to ... go."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: x for key, x in content.items() if x is not ...}))


def change_tensors(folder: Path, change: Callable[[dict], dict]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(*parts: str):
    return lambda held: {n: t for n, t in held.items() if not any(part in n for part in parts)}


def renamed(prefix: str):
    return lambda held: {prefix + name: tensor for name, tensor in held.items()}


def test_a_whole_base_has_nothing_to_warn_of(tiny_model):
    assert check(tiny_model) == []


MISSING = {
    "two norms": (without("input_layernorm"), "2 of the 21 tensors of LlamaForCausalLM"),
    "the last layer": (without("layers.1."), "num_hidden_layers: 2, the files have 1"),
    "a layer in the middle": (without("layers.0."), "'model.layers.0.input_layernorm.weight'"),
    "the head": (without("lm_head"), "must say `tie_word_embeddings: true`"),
    "compiled": (renamed("_orig_mod."), "names with `_orig_mod.` before them"),
    "wrapped": (renamed("module."), "names with `module.` before them"),
    "a classifier's head": (
        lambda held: without("lm_head")(held) | {"score.weight": torch.ones(1, 32)},
        "they have 'score.weight' instead, as of a classifier",
    ),
    "the embedding alone": (
        lambda held: {"model.embed_tokens.weight": held["model.embed_tokens.weight"]},
        "20 of the 21 tensors",
    ),
}


@pytest.mark.parametrize("change, line", MISSING.values(), ids=MISSING.keys())
def test_weights_that_would_start_at_random_are_named(copy, change, line):
    change_tensors(copy, change)
    with pytest.raises(UserError, match="its files lack .*, which would be random") as found:
        check(copy)
    assert line in str(found.value)


OTHER_MODELS = {
    "more layers": ({"num_hidden_layers": 3}, "num_hidden_layers: 3, the files have 2"),
    "fewer layers": ({"num_hidden_layers": 1}, "num_hidden_layers: 1, the files have 2"),
    "no layer": ({"num_hidden_layers": 0}, "num_hidden_layers: 0"),
    "another width": ({"intermediate_size": 48}, r"is \[32, 64\] in its files and \[32, 48\]"),
    "another vocabulary": ({"vocab_size": 32}, r"is \[25, 32\] in its files and \[32, 32\]"),
    "other heads": ({"num_key_value_heads": 4}, "are of different models"),
    "tied by the config": ({"tie_word_embeddings": True}, "set `tie_word_embeddings: false`"),
}


@pytest.mark.parametrize("changes, line", OTHER_MODELS.values(), ids=OTHER_MODELS.keys())
def test_a_config_of_another_model_is_refused_with_both_numbers(copy, changes, line):
    change_json(copy / "config.json", **changes)
    with pytest.raises(UserError, match=line):
        check(copy)


def test_tensors_of_another_model_are_refused_and_unread_ones_warned_of(copy, tmp_path):
    base = shutil.copytree(copy, tmp_path / "other")
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
    change_tensors(copy, lambda held: held | bias)
    with pytest.raises(UserError, match="'model.layers.0.self_attn.q_proj.bias', for which Llama"):
        check(copy)
    value_head = {"v_head.summary.weight": torch.ones(1, 32)}
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    change_tensors(base, lambda held: held | value_head | old)
    (warning,) = check(base)
    assert "'v_head.summary.weight' in its files are no part of LlamaForCausalLM" in warning
    change_tensors(base, lambda held: held | {"score.weight": torch.ones(1, 32)})
    with pytest.raises(UserError, match="'score.weight', the head of a classifier"):
        check(base)


def test_a_tied_base_without_its_embedding_or_said_to_be_untied_is_refused(tmp_path):
    save_tiny_model(tmp_path / "base", tied=True)
    assert check(tmp_path / "base") == []
    change_json(tmp_path / "base" / "config.json", tie_word_embeddings=False)
    with pytest.raises(UserError, match="lack 'lm_head.weight'"):
        check(tmp_path / "base")


def test_a_classifiers_folder_is_refused_though_its_head_is_tied(tmp_path):
    save_tiny_model(tmp_path / "base", tied=True)
    change_json(tmp_path / "base" / "config.json", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UserError, match="is a LlamaForSequenceClassification by its config.json"):
        check(tmp_path / "base")


SMALL = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SMALL, "intermediate_size": 40, "num_key_value_heads": 2}
FAMILIES = {
    "gpt2": transformers.GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=4),
    "opt": transformers.OPTConfig(**SMALL, ffn_dim=40, word_embed_proj_dim=24),
    "gpt_neox": transformers.GPTNeoXConfig(**SMALL, intermediate_size=40),
    "gemma2": transformers.Gemma2Config(**GATED, head_dim=8),
    "mixtral": transformers.MixtralConfig(**GATED, num_local_experts=4),
    "qwen3 moe": transformers.Qwen3MoeConfig(
        **GATED, head_dim=8, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16
    ),
}


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_name_that_transformers_knows_counts_as_there(tmp_path, config):
    """Fused experts, tied weights, names without the base model's prefix, `.bin` files."""
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "bin")
    from vcsoup_dist.training.base_checks.architecture import check_architecture, open_config
    from vcsoup_dist.training.base_checks.tensors import check_tensors

    meta = check_architecture(open_config(str(tmp_path), None), 64)
    assert check_tensors(meta, tmp_path) == []
    prefix = f"{model.base_model_prefix}."
    change_tensors(tmp_path, lambda held: {n.removeprefix(prefix): t for n, t in held.items()})
    assert check_tensors(meta, tmp_path) == []
    (tmp_path / "bin" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert check_tensors(meta, tmp_path / "bin") == []
    change_tensors(tmp_path, without("1.mlp", "1.fc1", "1.block_sparse"))
    with pytest.raises(UserError, match="lack|in its files and"):
        check_tensors(meta, tmp_path)


QUANTISED = {
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised weights"),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, "quantised weights"),
    "no method": ({"quantization_config": {}}, r"a quantization_config \(without a method\)"),
    "dtype": ({"dtype": "float8_e4m3fn"}, "says dtype: float8_e4m3fn"),
}


@pytest.mark.parametrize("changes, line", QUANTISED.values(), ids=QUANTISED.keys())
def test_a_quantised_base_is_refused(copy, changes, line):
    change_json(copy / "config.json", **changes)
    with pytest.raises(UserError, match=line):
        check(copy)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_whole_numbers_or_eight_bits_are_refused(copy, dtype):
    change_tensors(
        copy, lambda held: {n: t.to(dtype) if "proj" in n else t for n, t in held.items()}
    )
    with pytest.raises(UserError, match="quantised"):
        check(copy)


def test_a_config_that_says_no_quantisation_or_another_dtype_is_fine(copy):
    change_json(copy / "config.json", quantization_config=None, dtype="float16")
    assert check(copy) == []


CONFIGS = {
    "a list": ("[1, 2]", "JSON is not an object"),
    "half": ('{"model_type": ', "JSON cannot be read"),
    "empty": ("{}", "is missing or empty|names no model_type"),
    "no type": ('{"hidden_size": 8}', "names no model_type"),
    "a type of a list": ('{"model_type": ["llama"]}', "is unknown to transformers"),
    "a misspelt type": ('{"model_type": "lama"}', "'lama' is unknown to transformers"),
    "code of its own": (
        '{"model_type": "x", "auto_map": {"AutoModelForCausalLM": "x.X"}}',
        "comes with its own Python code, which training does not run",
    ),
    "text for a number": ('{"model_type": "llama", "num_hidden_layers": "2"}', "is wrong: "),
    "encoder and decoder": ('{"model_type": "t5"}', "t5 is an encoder with a decoder"),
    "an encoder": ('{"model_type": "vit"}', "makes no causal language model"),
}


@pytest.mark.parametrize("content, line", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_config_of_no_causal_model_is_a_line_that_names_the_folder(copy, content, line):
    (copy / "config.json").write_text(content)
    with pytest.raises(UserError, match=line) as found:
        check(copy)
    assert str(copy) in str(found.value)


FILES = {
    "half the weights": ("model.safetensors", lambda raw: raw[: len(raw) // 2], "truncated"),
    "no tokenizer": ("tokenizer.json", None, "tokenizer cannot be loaded"),
    "half a tokenizer": ("tokenizer.json", lambda raw: raw[:100], "tokenizer cannot be loaded"),
    "half a generation config": (
        "generation_config.json",
        lambda raw: raw[:10],
        "generation_config.json is wrong",
    ),
    "a generation config that contradicts itself": (
        "generation_config.json",
        lambda raw: b'{"do_sample": false, "temperature": 0.9}',
        "generation_config.json is wrong: .*temperature",
    ),
    "an end token by name": (
        "generation_config.json",
        lambda raw: b'{"eos_token_id": "<|end|>"}',
        "is '<|end|>', not the ids of tokens",
    ),
}


@pytest.mark.parametrize("name, change, line", FILES.values(), ids=FILES.keys())
def test_a_broken_file_is_a_line_that_names_the_folder(copy, name, change, line):
    raw = (copy / name).read_bytes()
    (copy / name).unlink()
    if change:
        (copy / name).write_bytes(change(raw))
    with pytest.raises(UserError, match=line.replace("|", r"\|")) as found:
        check(copy)
    assert str(copy) in str(found.value)


def test_code_that_comes_with_a_known_model_is_not_run_and_that_is_said(copy):
    (copy / "modeling_x.py").write_text("raise RuntimeError('was run')")
    change_json(copy / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    (warning,) = check(copy)
    assert "is not run; it is trained as transformers' own LlamaForCausalLM" in warning


def test_ids_without_a_row_are_refused_and_rows_without_an_id_are_usual(copy):
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["<extra>", "<more>"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(
        UserError, match=r"the id 25 \('<extra>'\) and 1 more, the embedding 25 rows"
    ):
        check(copy)
    change_json(copy / "config.json", vocab_size=64)
    change_tensors(
        copy,
        lambda held: {
            name: torch.cat([tensor, torch.zeros(39, 32)]) if len(tensor) == 25 else tensor
            for name, tensor in held.items()
        },
    )
    assert check(copy) == []


def test_lengths_beyond_the_positions_are_refused_with_the_keys_and_both_numbers(copy):
    change_json(copy / "config.json", max_position_embeddings=64)
    assert check(copy) == []
    with pytest.raises(UserError, match="training.max_length: 65 is more than the 64 positions"):
        check(copy, Training(max_length=65))
    line = "evaluation.max_prompt_tokens: 32 and evaluation.max_new_tokens: 33 are together more"
    with pytest.raises(UserError, match=f"{line} than the 64 positions"):
        check(copy, evaluation=Evaluation(max_prompt_tokens=32, max_new_tokens=33))


def rope(kind: str, **settings: object) -> transformers.LlamaConfig:
    scaling = {"rope_type": kind, "rope_theta": 10000.0, **settings}
    return transformers.LlamaConfig(max_position_embeddings=100, rope_parameters=scaling)


CONTEXTS = {
    "plain": (rope("default"), 100),
    "linear": (rope("linear", factor=4.0), 400),
    "yarn": (rope("yarn", factor=4.0), 400),
    "yarn of its own": (rope("yarn", factor=4.0, original_max_position_embeddings=50), 200),
    "llama3": (
        rope("llama3", factor=2.0, original_max_position_embeddings=20, low_freq_factor=1.0,
             high_freq_factor=4.0),
        100,
    ),
    "learned": (transformers.GPT2Config(n_positions=77), 77),
    "sliding": (transformers.MistralConfig(max_position_embeddings=90, sliding_window=10), 90),
    "any number": (transformers.BloomConfig(), None),
}  # fmt: skip


@pytest.mark.parametrize("config, positions", CONTEXTS.values(), ids=CONTEXTS.keys())
def test_positions_are_those_of_the_config_and_of_its_scaling(config, positions):
    assert context_length(config) == positions


def test_all_lengths_beyond_the_positions_are_one_error_with_what_fits(copy):
    change_json(copy / "config.json", max_position_embeddings=64)
    with pytest.raises(UserError) as found:
        check(copy, Training(max_length=65), Evaluation(max_prompt_tokens=40, max_new_tokens=30))
    assert "training.max_length: 65 is more than the 64 positions" in str(found.value)
    assert "set it to 64 or less; evaluation.max_prompt_tokens: 40" in str(found.value)
    assert str(found.value).endswith(
        "set evaluation.max_prompt_tokens to 34 or less, or lower the other"
    )


def test_a_weight_of_booleans_is_refused(copy):
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(copy, lambda held: held | {name: held[name] > 0})
    with pytest.raises(UserError, match="holds weights in BOOL"):
        check(copy)


def test_a_tied_head_that_was_stored_in_another_dtype_is_the_same(copy):
    def tie(head: Callable[[torch.Tensor], torch.Tensor]) -> None:
        embedding = load_file(copy / "model.safetensors")["model.embed_tokens.weight"]
        change_tensors(copy, lambda held: held | {"lm_head.weight": head(embedding)})

    change_json(copy / "config.json", tie_word_embeddings=True)
    tie(lambda embedding: embedding.bfloat16())
    assert check(copy) == []
    tie(lambda embedding: embedding.bfloat16() + 1)
    with pytest.raises(UserError, match="its files hold other numbers for each"):
        check(copy)


def test_an_endless_scaling_and_an_end_token_below_zero_end_in_no_traceback(copy):
    rope = {"rope_type": "linear", "factor": float("inf"), "rope_theta": 1e4}
    change_json(copy / "config.json", rope_parameters=rope)
    (copy / "generation_config.json").write_text('{"eos_token_id": -1}')
    assert "its generation config stops at -1 (no token)" in check(copy)[0]


def test_sampling_values_without_do_sample_mean_sampling_and_that_is_said(copy):
    (copy / "generation_config.json").write_text(
        json.dumps({"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2})
    )
    said = [line for line in check(copy) if "do_sample" in line]
    assert len(said) == 1 and "has temperature: 0.9 without do_sample" in said[0]


def test_a_matrix_of_zeros_is_warned_of_and_one_that_only_begins_with_them_is_not(copy):
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(copy, lambda held: held | {name: torch.zeros_like(held[name])})
    (warning,) = check(copy)
    assert f"{name!r} hold nothing but zeros" in warning
    last = torch.zeros(load_file(copy / "model.safetensors")[name].shape)
    last[-1, -1] = 1
    change_tensors(copy, lambda held: held | {name: last})
    assert check(copy) == []


def test_other_folders_than_models_are_named_by_their_kind(copy, tmp_path):
    (copy / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="holds a model and a LoRA adapter .* as well"):
        check(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is a LoRA adapter .*merge it into its base model first"):
        check(copy)
    (copy / "adapter_config.json").unlink()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 13\n"
    (copy / "model.safetensors").write_text(pointer)
    with pytest.raises(UserError, match="Git LFS"):
        check(copy)
