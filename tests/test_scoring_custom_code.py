"""Classifiers whose Python code comes with the model, as ArmoRM's does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import WORDS, save_tiny_tokenizer
from safetensors.torch import save_file

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import ClassifierReward
from vcsoup_dist.scoring.heads import are_rounded
from vcsoup_dist.scoring.load_reward import load_reward

MARKER = 3  # token id of <|assistant|>, which the code looks for in every text
REFUSED = WORDS.index("blue") + 5
CODE = f"""
from dataclasses import dataclass

import torch
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.utils import ModelOutput


@dataclass
class Judged(ModelOutput):
    rewards: torch.FloatTensor = None
    gating_output: torch.FloatTensor = None
    score: torch.FloatTensor = None
    logits: torch.FloatTensor = None


class GatedRewards(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.regression_layer = torch.nn.Linear(config.hidden_size, 3, bias=False)
        self.gating = torch.nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        hidden = self.model(input_ids, attention_mask=attention_mask)[0]
        if (input_ids == {REFUSED}).any():
            raise ValueError("it says blue")
        rows = torch.arange(len(input_ids))
        last = POOLING
        rewards = self.regression_layer(hidden[rows, last])
        markers = [ids.tolist().index({MARKER}) for ids in input_ids]
        gates = self.gating(hidden[rows, markers]).softmax(dim=-1)
        score = (gates * rewards).sum(dim=-1)
        return Judged(rewards, gates, score, score)
"""
POOLINGS = {
    "by mask": ("attention_mask.sum(dim=1) - 1", "padded,"),
    "the row's end": ("-1", "padded on the left,"),
    "refuses batches": ("-1 if len(input_ids) == 1 else 1 / 0", "one text at a time,"),
}
TEXTS = [
    ([{"role": "user", "content": "the cat"}], "yes"),
    ([{"role": "user", "content": "a dog sees the old house and the river"}], "no no"),
    ([{"role": "user", "content": "a dog sees the old house and the river"}], "the big tree"),
]


@pytest.fixture(autouse=True)
def own_module_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )


def save_model(folder: Path, pooling: str) -> Path:
    """A Llama with the code above; what is not its backbone is drawn here."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS) + 5, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_labels=1, pad_token_id=0, eos_token_id=1,
        initializer_range=0.2, max_position_embeddings=128,
    )  # fmt: skip
    backbone = transformers.LlamaForCausalLM(config)
    weights = {k: v for k, v in backbone.state_dict().items() if k != "lm_head.weight"}
    weights |= {
        "regression_layer.weight": torch.randn(3, 32),
        "gating.weight": torch.randn(3, 32),
        "gating.bias": torch.randn(3),
    }
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_tiny_tokenizer(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForSequenceClassification": "modeling_gated.GatedRewards"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "modeling_gated.py").write_text(CODE.replace("POOLING", pooling))
    return folder


def load(folder: Path, *settings: dict, **shared):
    rewards = [ClassifierReward(classifier=str(folder), **each, **shared) for each in settings]
    return load_reward(rewards, Located(str(folder), None, None), tokens_per_batch=50)


def expected_rewards(folder: Path) -> np.ndarray:
    """rewards and score [texts, 4] by the model's own code alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=True
    ).eval()
    rows = []
    for prompt, response in TEXTS:
        chat = [*prompt, {"role": "assistant", "content": response}]
        inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model(inputs["input_ids"], inputs["attention_mask"])
        rows.append([*out.rewards[0].tolist(), out.score.item()])
    return np.array(rows)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_its_heads_are_rewards_by_whatever_way_is_right_for_it(tmp_path: Path, pooling: str):
    code, way = POOLINGS[pooling]
    folder = save_model(tmp_path / "model", code)
    heads = [{"head": "rewards", "output": i} for i in (2, 0)] + [{"head": "score"}]
    scorer = load(folder, *heads, trust_remote_code=True)
    assert f": {way}" in scorer.description
    expected = expected_rewards(folder)[:, [2, 0, 3]]
    found = scorer.score(scorer.encode(TEXTS)).rewards
    np.testing.assert_allclose(found, expected, atol=1e-5)


SMALL_MEAN = """
import torch
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class GatedRewards(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.regression_layer = torch.nn.Linear(config.hidden_size, 3, bias=False)
        self.gating = torch.nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        hidden = self.model(input_ids, attention_mask=attention_mask)[0]
        return SequenceClassifierOutput(logits=0.0001 * self.regression_layer(hidden.mean(dim=1)))
"""

LONG = "yes and no or yes and no or yes {prompt} {response}"


@pytest.mark.parametrize("settings", [{}, {"dtype": "bf16"}, {"max_length": 8, "text": LONG}])
def test_neither_a_small_scale_nor_a_short_limit_hides_that_padding_changes_outputs(
    tmp_path: Path, settings: dict
):
    folder = save_model(tmp_path / "model", "-1")
    (folder / "modeling_gated.py").write_text(SMALL_MEAN)
    scorer = load(folder, {"output": 1}, trust_remote_code=True, **settings)
    assert "one text at a time" in scorer.description
    assert "not padded, which changes its outputs" in scorer.description


def test_code_that_rounds_to_bf16_is_known_by_its_outputs(tmp_path: Path):
    folder = save_model(tmp_path / "model", "attention_mask.sum(dim=1) - 1")
    for dtype in ("fp32", "bf16"):
        scorer = load(folder, {"head": "rewards"}, trust_remote_code=True, dtype=dtype)
        assert are_rounded(scorer.choice.outputs) == (dtype == "bf16")


def test_code_without_consent_is_refused_by_the_key_and_never_run(tmp_path: Path):
    folder = save_model(tmp_path / "model", "-1")
    (folder / "modeling_gated.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match=f"{folder}.*code of its own.*`trust_remote_code: true`"):
        load(folder, {"head": "rewards"})


def test_code_that_fails_on_one_text_leaves_the_others_their_rewards(tmp_path: Path):
    folder = save_model(tmp_path / "model", "attention_mask.sum(dim=1) - 1")
    scorer = load(folder, {"head": "score"}, trust_remote_code=True)
    refused = (TEXTS[1][0], "blue")
    scored = scorer.score(scorer.encode([*TEXTS, refused]))
    assert scored.failures == {3: "ValueError: it says blue"}
    np.testing.assert_allclose(scored.rewards[:3, 0], expected_rewards(folder)[:, 3], atol=1e-5)


def test_code_that_fails_on_every_text_is_refused_with_what_it_says(tmp_path: Path):
    folder = save_model(tmp_path / "model", "-1")
    with pytest.raises(UserError, match="fails on a plain text.*ValueError: 3 is not in list"):
        load(folder, {"head": "score"}, trust_remote_code=True, text="response")


def test_code_that_cannot_be_imported_is_a_clear_error(tmp_path: Path):
    folder = save_model(tmp_path / "model", "-1")
    (folder / "modeling_gated.py").write_text("1 / 0")
    with pytest.raises(UserError, match=f"{folder}: cannot load it.*ZeroDivisionError"):
        load(folder, {}, trust_remote_code=True)


def test_a_head_of_another_size_than_the_labels_has_no_names(tmp_path: Path):
    folder = save_model(tmp_path / "model", "-1")
    wanted = {"head": "rewards", "output": "LABEL_0"}
    with pytest.raises(UserError, match="`rewards` has the outputs 0 to 2 and no names"):
        load(folder, wanted, trust_remote_code=True)
