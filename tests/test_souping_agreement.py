"""Which configs and tokenizers have a soup, and which of their differences are only said."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import vcsoup
from merging import files_of, write_policy

from vcsoup_dist.checkpoints.config_agreement import config_differences
from vcsoup_dist.checkpoints.config_defaults import declared_keys
from vcsoup_dist.checkpoints.vocabulary import read_vocabulary
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.tokenizer_source import choose_tokenizer_source

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 8, "hidden_act": "silu",
    "rms_norm_eps": 1e-05, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False, "dtype": "bfloat16",
    "max_position_embeddings": 1024, "sliding_window": None, "transformers_version": "5.0.0",
}  # fmt: skip
OLD_ROPE = {"rope_parameters": None, "rope_theta": 10000, "rope_scaling": None}

SAID = {
    "attention": ({"attn_implementation": "eager"}, "attn_implementation"),
    "unsloth": ({"unsloth_version": "2025.1", "unsloth_fixed": True}, "unsloth_fixed"),
    "architectures": ({"architectures": ["LlamaModel"]}, "architectures"),
    "end tokens": ({"eos_token_id": [1, 2], "pad_token_id": None}, "eos_token_id"),
    "dropout": ({"attention_dropout": 0.1}, "attention_dropout"),
    "an unknown word": ({"trained_by": "me"}, "trained_by"),
    "longest text": ({"max_position_embeddings": 4096}, "max_position_embeddings"),
}
SILENT = {
    "autoset": {"_attn_implementation_autoset": True, "_name_or_path": "x"},
    "how it was saved": {"dtype": None, "torch_dtype": "float32", "transformers_version": "4.1"},
    "cache": {"use_cache": False},
    "null": {"quantization_config": None, "rope_scaling": None, "new_key": None},
    "defaults": {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "head_dim": 16},
    "heads": {"num_key_value_heads": 4},
    "rope of transformers 4": OLD_ROPE,
    "no rope at all": {"rope_parameters": None},
    "another name of the activation": {"hidden_act": "swish"},
    "layer types": {"layer_types": ["full_attention"] * 2},
}
REFUSED = {
    "theta": {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
    "theta of transformers 4": OLD_ROPE | {"rope_theta": 500000.0},
    "scaling": OLD_ROPE | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "activation": {"hidden_act": "gelu"},
    "eps": {"rms_norm_eps": 1e-6},
    "eps left out, of another default": {"rms_norm_eps": None},
    "softcap": {"final_logit_softcapping": 30.0},
    "window": {"sliding_window": 512},
    "bias": {"attention_bias": True},
    "width": {"hidden_size": 128},
    "vocabulary": {"vocab_size": 9},
    "tied": {"tie_word_embeddings": True},
    "architecture": {"model_type": "mistral"},
    "heads": {"num_key_value_heads": 2},
}


def changed(config: dict, change: dict) -> dict:
    """null of a key that llama has a default for is written as an absent key."""
    found = config | change
    return {key: value for key, value in found.items() if value is not None}


@pytest.mark.parametrize("case", SAID)
def test_what_changes_no_number_is_only_said(case):
    change, key = SAID[case]
    found = config_differences(LLAMA, changed(LLAMA, change))
    assert not found.refused and any(each.startswith(key) for each in found.noted)


@pytest.mark.parametrize("case", SILENT)
def test_what_every_save_says_otherwise_is_not_even_said(case):
    for two in (LLAMA | SILENT[case], changed(LLAMA, SILENT[case])):
        for pair in ((LLAMA, two), (two, LLAMA)):
            found = config_differences(*pair)
            assert not found.refused and not found.noted


@pytest.mark.parametrize("case", REFUSED)
def test_what_changes_shapes_or_the_function_is_refused_even_if_one_is_chosen(case):
    two = changed(LLAMA, REFUSED[case])
    for pair in ((LLAMA, two), (two, LLAMA)):
        assert config_differences(*pair).refused
    if case not in ("window", "softcap"):  # which llama itself does not read
        assert config_differences(LLAMA, two, chosen=True).refused


def test_an_absent_key_has_the_default_of_its_architecture_and_null_is_no_default():
    mistral = {"model_type": "mistral", "hidden_size": 64, "num_attention_heads": 4}
    assert declared_keys("mistral")["sliding_window"] == 4096
    assert not config_differences(mistral, mistral | {"sliding_window": 4096}).refused
    assert config_differences(mistral, mistral | {"sliding_window": None}).refused
    window = {"sliding_window": 4096}
    assert config_differences(mistral | window, mistral | {"sliding_window": None}).refused
    qwen = {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32768}
    assert not config_differences(qwen, qwen | {"sliding_window": None}).refused
    assert declared_keys("no_such_model") is None and declared_keys("../llama") is None


def test_rope_of_each_type_of_layer_is_that_of_transformers_4():
    old = {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 10000.0}
    layers = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    new = {"model_type": "gemma3_text", "rope_parameters": layers}
    assert not config_differences(old, new).refused
    nested = [{"model_type": "gemma3", "text_config": each} for each in (old, new)]
    assert not config_differences(*nested).refused
    nested[0]["text_config"] = old | {"rope_theta": 5.0}
    assert "text_config.rope_theta" in config_differences(*nested).refused[0]


def test_what_an_unknown_architecture_means_by_a_key_is_refused_unless_one_is_chosen():
    one, two = {"model_type": "own", "gate": 1}, {"model_type": "own", "gate": 2}
    assert config_differences(one, two).refused == ["gate (1 and 2)"]
    assert config_differences(one, two, chosen=True).noted == ["gate (1 and 2)"]
    assert config_differences({"model_type": "own"}, two).noted == ["gate (none and 2)"]


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": 6, "content": "<end>", "special": True, "normalized": False}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    "post_processor": None, "decoder": {"type": "ByteLevel"},
    "model": {
        "type": "BPE", "dropout": None, "byte_fallback": False,
        "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "d": 5}, "merges": ["a b", "ab c"],
    },
}  # fmt: skip


def policy(folder: Path, config: dict = LLAMA, tokenizer: dict | None = None, **files) -> Path:
    """files: name, with _ for the dot -> content of further JSON files; a str is text."""
    made = write_policy(
        folder, {"w": ("F32", np.arange(4, dtype="<f4"))}, config=config,
        tokenizer=tokenizer or TOKENIZER,
    )  # fmt: skip
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (made / name.replace("__", ".")).write_text(text)
    return made


def with_tokens(**change) -> dict:
    """TOKENIZER with another part, or another part of its model."""
    found = copy.deepcopy(TOKENIZER)
    for key, value in change.items():
        (found["model"] if key in found["model"] else found)[key] = value
    return found


SAME_TOKENS = {
    "pairs": with_tokens(merges=[["a", "b"], ["ab", "c"]]),
    "truncation": with_tokens(truncation={"max_length": 8}, padding={"length": 9}),
    "a sequence of one": with_tokens(
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    ),
    "a default written out": with_tokens(
        pre_tokenizer=TOKENIZER["pre_tokenizer"] | {"use_regex": True}
    ),
}
OTHER_TOKENS = {
    "permuted": (
        with_tokens(vocab={"b": 0, "a": 1, "c": 2, "ab": 3, "abc": 4, "d": 5}),
        "the token of id 0 ('a' and 'b')",
    ),
    "another added": (
        with_tokens(added_tokens=[{"id": 6, "content": "<stop>"}]),
        "the token of id 6 ('<end>' and '<stop>')",
    ),
    "one more": (
        with_tokens(added_tokens=[*TOKENIZER["added_tokens"], {"id": 7, "content": "<x>"}]),
        "token 7 ('<x>') is in one of them alone",
    ),
    "normaliser": (with_tokens(normalizer={"type": "NFKC"}), "its normalizer"),
    "merges": (with_tokens(merges=["ab c", "a b"]), "the merges of its tokens"),
}


@pytest.mark.parametrize("case", SAME_TOKENS)
def test_tokenizers_that_were_saved_otherwise_are_the_same(tmp_path, caplog, case):
    pair = [("p", policy(tmp_path / "p")), ("q", policy(tmp_path / "q", LLAMA, SAME_TOKENS[case]))]
    assert choose_tokenizer_source(pair, None, None) == tmp_path / "p"
    assert not caplog.messages


@pytest.mark.parametrize("case", OTHER_TOKENS)
def test_tokenizers_of_other_ids_are_refused_by_name(tmp_path, case):
    other, message = OTHER_TOKENS[case]
    pair = [("p", policy(tmp_path / "p")), ("q", policy(tmp_path / "q", LLAMA, other))]
    for model in (None, tmp_path / "p"):
        with pytest.raises(UserError) as caught:
            choose_tokenizer_source(pair, None, model)
        assert "p and q differ in tokenizer: " in str(caught.value) and message in str(caught.value)


@pytest.mark.processes
def test_all_that_is_refused_is_said_together(tmp_path):
    other = changed(LLAMA, {"rms_norm_eps": 1e-6, "hidden_act": "gelu"})
    policy(tmp_path / "p")
    policy(tmp_path / "q", other, OTHER_TOKENS["permuted"][0])
    policy(tmp_path / "r", LLAMA, OTHER_TOKENS["normaliser"][0])
    command = ["merge", "p", "q", "r", "--weights", "0.5,0.3,0.2", "--out", "out"]
    said = vcsoup(*command, folder=tmp_path, code=2)
    assert said.count("\n") == 1
    for part in ("rms_norm_eps", "hidden_act", "id 0", "p and q", "p and r", "its normalizer"):
        assert part in said


def old_format(folder: Path) -> Path:
    """A policy as transformers 4 saves it, with the same tokens and the same template."""
    config = changed(LLAMA, OLD_ROPE | {"torch_dtype": "bfloat16", "dtype": None})
    return policy(
        folder, config,
        special_tokens_map__json={"eos_token": {"content": "<end>", "lstrip": False}},
        tokenizer_config__json={
            "added_tokens_decoder": {"6": {"content": "<end>"}}, "chat_template": "{{ x }}",
            "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast",
        },
        vocab__json=TOKENIZER["model"]["vocab"],
    )  # fmt: skip


def new_format(folder: Path) -> Path:
    return policy(
        folder, LLAMA, SAME_TOKENS["pairs"], chat_template__jinja="{{ x }}\n",
        tokenizer_config__json={"eos_token": "<end>", "tokenizer_class": "TokenizersBackend"},
    )  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize("how", ["policy", "base"])
def test_formats_of_transformers_4_and_5_are_merged(tmp_path, how):
    for name in ("p", "q"):
        new_format(tmp_path / name)
    old_format(tmp_path / "old")
    if how == "base":
        asked = ["p", "q", "--weights", "0.5,0.3", "--base", "old"]
    else:
        asked = ["old", "p", "--weights", "0.5,0.5"]
    said = vcsoup("merge", *asked, "--out", "out", folder=tmp_path)
    assert "chat template" not in said and "eos_token" not in said
    donor = tmp_path / asked[0]
    assert files_of(tmp_path / "out")["config.json"] == files_of(donor)["config.json"]


@pytest.mark.processes
def test_of_a_base_the_vocabulary_alone_is_compared(tmp_path):
    for name in ("p", "q"):
        policy(tmp_path / name)
    policy(tmp_path / "base", changed(LLAMA, {"eos_token_id": 5}), with_tokens(added_tokens=[]))
    command = ["merge", "p", "q", "--weights", "0.5,0.3", "--out", "out"]
    vcsoup(*command, "--base", "base", folder=tmp_path)
    policy(tmp_path / "bad", LLAMA, OTHER_TOKENS["permuted"][0])
    said = vcsoup(*command, "--base", "bad", folder=tmp_path, code=2)
    assert "p and bad differ in tokenizer: the token of id 0" in said


@pytest.mark.processes
def test_model_says_whose_config_and_tokenizer_the_soup_gets(tmp_path):
    policy(tmp_path / "p", LLAMA)
    policy(tmp_path / "q", LLAMA | {"eos_token_id": [1, 2]}, chat_template__jinja="q")
    policy(tmp_path / "m", LLAMA | {"eos_token_id": 7}, chat_template__jinja="m")
    command = ["merge", "p", "q", "--weights", "0.5,0.5", "--out"]
    said = vcsoup(*command, "first", folder=tmp_path)
    assert "differ in eos_token_id (1 and [1, 2]), tokenizer: its chat template: soups get" in said
    vcsoup(*command, "out", "--model", "m", folder=tmp_path)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 7
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "m"
    (tmp_path / "empty").mkdir()
    assert "config.json" in vcsoup(*command, "x", "--model", "empty", folder=tmp_path, code=2)
    policy(tmp_path / "other", LLAMA | {"hidden_size": 128})
    said = vcsoup(*command, "x", "--model", "other", folder=tmp_path, code=2)
    assert "differ in config.json: " in said and "hidden_size (64 and 128)" in said


@pytest.mark.processes
def test_a_policy_without_a_tokenizer_takes_that_of_the_others(tmp_path):
    (policy(tmp_path / "p") / "tokenizer.json").unlink()
    policy(tmp_path / "q")
    vcsoup("merge", "p", "q", "--weights", "0.5,0.5", "--out", "out", folder=tmp_path)
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_a_sentencepiece_model_is_compared_with_a_tokenizer_json(tmp_path):
    def field(number: int, raw: bytes) -> bytes:
        return bytes([number << 3 | 2, len(raw)]) + raw

    tokens = list(TOKENIZER["model"]["vocab"])
    chunks = [field(1, field(1, each.encode()) + b"\x15\x00\x00\x80\x3f") for each in tokens]
    raw = b"".join(chunks) + field(3, b"\x0a\x04nmt_")
    policy(tmp_path / "p")
    slow = policy(tmp_path / "q", added_tokens__json={"<end>": 6})
    (slow / "tokenizer.json").unlink()
    (slow / "tokenizer.model").write_bytes(raw)
    assert read_vocabulary(slow).tokens == dict(enumerate([*tokens, "<end>"]))
    pair = [("p", tmp_path / "p"), ("q", slow)]
    assert choose_tokenizer_source(pair, None, None) == tmp_path / "p"
    (slow / "tokenizer.model").write_bytes(b"".join(chunks[::-1]))
    with pytest.raises(UserError, match="the token of id 0"):
        choose_tokenizer_source(pair, None, None)
    shutil.rmtree(tmp_path / "p")
    other = policy(tmp_path / "p", added_tokens__json={"<end>": 6})
    (other / "tokenizer.json").unlink()
    (other / "tokenizer.model").write_bytes(b"\xff not a protobuf")
    (slow / "tokenizer.model").write_bytes(raw)
    with pytest.raises(UserError, match="differ in tokenizer"):
        choose_tokenizer_source(pair, None, None)


@pytest.mark.processes
@pytest.mark.parametrize("raw", ["{", "[]", '{"model": {"vocab": 3}}', '{"added_tokens": [3]}'])
def test_a_tokenizer_that_is_none_is_one_line(tmp_path, raw):
    policy(tmp_path / "p")
    (policy(tmp_path / "q") / "tokenizer.json").write_text(raw)
    command = ["merge", "p", "q", "--weights", "0.5,0.5", "--out", "out"]
    said = vcsoup(*command, folder=tmp_path, code=2)
    assert said.startswith("vcsoup: q/tokenizer.json: ") and said.count("\n") == 1
