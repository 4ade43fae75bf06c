"""Reward models that cannot be loaded: one line that names what is wrong and the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import ClassifierReward
from vcsoup_dist.scoring.load_reward import load_reward

OWN_CODE = """
import torch
from transformers import PreTrainedModel, PretrainedConfig

class Config(PretrainedConfig):
    model_type = "own"

class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **others):
        return (input_ids.sum(dim=1, keepdim=True) * self.scale,)
"""


def save(folder: Path, labels: int = 1) -> Path:
    save_tiny_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=25, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_labels=labels, pad_token_id=0,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def load(folder: Path, **settings):
    return load_reward(
        [ClassifierReward(classifier="x", **settings)], Located(str(folder), None, None)
    )


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_head_of_another_size_is_refused_with_both_shapes(tmp_path):
    edit_config(save(tmp_path, labels=3), id2label={"0": "a"}, label2id={"a": 0})
    with pytest.raises(UserError, match=r"score.weight of the shape \[3, 16\], .* for \[1, 16\]"):
        load(tmp_path)


def test_any_tensor_of_another_shape_is_refused(tmp_path):
    edit_config(save(tmp_path), intermediate_size=48)
    with pytest.raises(UserError, match=r"mlp.*of the shape .*32.* for .*48"):
        load(tmp_path)


def test_a_tensor_that_is_missing_within_the_model_is_refused(tmp_path):
    weights = load_file(save(tmp_path) / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack model.layers.1.mlp.up_proj.weight"):
        load(tmp_path)


def test_layers_that_the_config_does_not_know_are_refused(tmp_path):
    edit_config(save(tmp_path), num_hidden_layers=1)
    with pytest.raises(UserError, match=r"have model.layers.1.*no place"):
        load(tmp_path)


def test_a_lora_adapter_is_named_as_one_alone_and_beside_a_model(tmp_path):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "adapter_config.json").write_text(json.dumps(adapter))
    save_file({"a.lora_A.weight": torch.zeros(1)}, alone / "adapter_model.safetensors")
    with pytest.raises(UserError, match="LoRA adapter.*merge"):
        load(alone)
    beside = save(tmp_path / "beside")
    (beside / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(UserError, match="LoRA adapter .*as well"):
        load(beside)


def test_code_that_returns_a_tuple_or_has_no_classifier_is_sent_to_a_callable(tmp_path):
    save_tiny_tokenizer(tmp_path)
    (tmp_path / "own.py").write_text(OWN_CODE)
    classes = {
        "AutoConfig": "own.Config",
        "AutoModelForSequenceClassification": "own.Model",
    }
    config = {"model_type": "own", "architectures": ["Model"], "auto_map": classes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"scale": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="returns no `logits`, but a tuple; score it with a `call"):
        load(tmp_path, trust_remote_code=True)
    (tmp_path / "own.py").write_text(OWN_CODE.replace('"own"', '"other"'))
    without = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    edit_config(tmp_path, model_type="other", auto_map=without)
    with pytest.raises(UserError, match="cannot load it .* score it with a `callable`"):
        load(tmp_path, trust_remote_code=True)


def test_the_log_says_which_of_several_outputs_is_taken_where_none_is_given(tmp_path):
    save(tmp_path, labels=2)
    unsaid = "2 outputs (LABEL_0, LABEL_1) and `output` is not given: the first, 0, is taken"
    assert unsaid in load(tmp_path).description
    assert "not given" not in load(tmp_path, output=0).description
