"""Classifier rewards equal one plain transformers forward per text, however they are batched."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import WORDS, save_tiny_model, save_tiny_tokenizer, sentence
from tokenizers import processors

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import ClassifierReward
from vcsoup_dist.scoring.classifier import Classifier, padded_batches
from vcsoup_dist.scoring.rewards import load_reward

SIZES = {
    "vocab_size": len(WORDS) + 5,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 3,
    "initializer_range": 0.2,  # at the usual 0.02 all texts score nearly the same
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=128),
    "qwen3": transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "mistral, sliding window": transformers.MistralConfig(
        **SIZES, num_key_value_heads=2, sliding_window=4
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=len(WORDS) + 5, n_embd=32, n_layer=2, n_head=4, n_positions=128, num_labels=3,
        initializer_range=0.2,
    ),
    "gemma2, soft-capped": transformers.Gemma2Config(**SIZES, head_dim=8, num_key_value_heads=2),
    "falcon, no attention interface": transformers.FalconConfig(
        vocab_size=len(WORDS) + 5, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_labels=3, alibi=False, initializer_range=0.2,
    ),
    "bert": transformers.BertConfig(**SIZES, max_position_embeddings=128),
    "deberta": transformers.DebertaV2Config(**SIZES, max_position_embeddings=128),
}  # fmt: skip
WAYS = dict.fromkeys(CONFIGS, "packed") | dict.fromkeys(
    ("falcon, no attention interface", "bert", "deberta"), "padded"
)
END = 1  # token id


def save_classifier(folder: Path, config: transformers.PretrainedConfig, pad: int | None) -> Path:
    torch.manual_seed(0)
    config = type(config).from_dict(config.to_dict())
    config.pad_token_id, config.eos_token_id, config.bos_token_id = pad, END, None
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    save_tiny_tokenizer(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None if pad is None else tokenizer.convert_ids_to_tokens(pad)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", pair="$A <|end|> $B:1 <|end|>:1", special_tokens=[("<|end|>", END)]
    )
    tokenizer.model_max_length = 100
    if config.model_type == "bert":
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


def draw_texts(count: int) -> list[tuple[list[dict[str, str]], str]]:
    draw = random.Random(0)
    return [
        ([{"role": "user", "content": sentence(draw, 25)}], sentence(draw, 25))
        for _ in range(count)
    ]


def one_by_one(folder: Path, form: str, texts) -> np.ndarray:
    """Logits [texts, outputs] by transformers alone, one unpadded text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None  # then it pools the very last token
    rows = []
    for prompt, response in texts:
        if form == "pair":
            inputs = tokenizer(prompt[0]["content"], response, return_tensors="pt")
        else:
            chat = [*prompt, {"role": "assistant", "content": response}]
            ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)
            inputs = {"input_ids": ids}
        with torch.no_grad():
            rows.append(model(**inputs).logits[0].double().numpy())
    return np.array(rows)


@pytest.mark.parametrize("pad", [0, END, None], ids=["pad", "pad=eos", "no pad"])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_equal_single_forwards_for_any_batches(tmp_path: Path, name: str, pad: int | None):
    if name in ("bert", "deberta") and pad is None:
        pytest.skip("its embeddings need a pad token")
    folder = save_classifier(tmp_path, CONFIGS[name], pad)
    form = "pair" if name == "bert" else "chat_template"
    texts = draw_texts(12)
    expected = one_by_one(folder, form, texts)
    assert np.ptp(expected[:, 1]) > 0.1  # the texts differ enough to be told apart
    reward = ClassifierReward(classifier=str(folder), output=1, text=form)
    for tokens_per_batch in (1, 60, 8192):
        scorer = load_reward(
            reward, Located(str(folder), None, None), tokens_per_batch=tokens_per_batch
        )
        assert WAYS[name] in scorer.description
        np.testing.assert_allclose(scorer.score(texts).rewards, expected[:, 1], atol=1e-5)
        alone = np.concatenate([scorer.score([text]).rewards for text in texts[:3]])
        np.testing.assert_allclose(alone, expected[:3, 1], atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_whose_texts_leak_into_each_other_is_run_one_by_one(llama, monkeypatch, dtype):
    texts = draw_texts(3)
    expected = one_by_one(llama, "chat_template", texts)[:, 0]
    for way in ("_packed", "_padded_last_token"):
        right = getattr(Classifier, way)
        monkeypatch.setattr(
            Classifier, way, lambda self, batch, right=right: right(self, batch) + (len(batch) > 1)
        )
    scorer = load(llama, dtype=dtype)
    assert "one text at a time" in scorer.description
    tolerance = {"fp32": 1e-5, "bf16": 0.1}[dtype]
    np.testing.assert_allclose(scorer.score(texts).rewards, expected, atol=tolerance)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("llama"), CONFIGS["llama"], END)


def load(folder: Path, **settings):
    reward = ClassifierReward(classifier=str(folder), **settings)
    return load_reward(reward, Located(str(folder), None, None))


def test_outputs_are_chosen_by_index_or_label_and_costs_change_sign(llama: Path):
    texts = draw_texts(3)
    logits = one_by_one(llama, "chat_template", texts)
    for settings, expected in (
        ({"output": 2}, logits[:, 2]),
        ({"output": "LABEL_2"}, logits[:, 2]),
        ({"output": 2, "sign": -1}, -logits[:, 2]),
    ):
        found = load(llama, **settings).score(texts).rewards
        np.testing.assert_allclose(found, expected, atol=1e-5)
    for unknown in (3, -1, "LABEL_9"):
        with pytest.raises(UserError, match="no output"):
            load(llama, output=unknown)


def test_bf16_scores_hardly_depend_on_the_batches(llama: Path):
    texts = draw_texts(8)
    exact, rounded = (load(llama, dtype=kind).score(texts).rewards for kind in ("fp32", "bf16"))
    alone = np.concatenate([load(llama, dtype="bf16").score([text]).rewards for text in texts])
    assert np.abs(rounded - alone).max() <= 1e-2 * np.abs(exact).max()
    assert 0 < np.abs(rounded - exact).max() < 0.1


def test_truncated_texts_are_counted_and_equal_the_cut_text_scored_alone(llama: Path):
    words = " ".join(WORDS)  # 22 tokens
    texts = [
        ([{"role": "user", "content": words}], "yes no"),
        ([{"role": "user", "content": "yes"}], words),
        ([{"role": "user", "content": "yes"}], "no"),
    ]
    scored = load(llama, max_length=20).score(texts)
    assert (scored.truncated, scored.truncated_responses) == (2, 1)
    # <|user|> leaves first, then words; 6 tokens are marks and the answer.
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    chat = [*texts[0][0], {"role": "assistant", "content": texts[0][1]}]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)[:, -20:]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(llama).eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, 0].item()
    assert scored.rewards[0] == pytest.approx(expected, abs=1e-5)


def test_a_length_beyond_the_model_is_refused(llama: Path):
    with pytest.raises(UserError, match="max_length 101 is more than the model's 100"):
        load(llama, max_length=101)


def test_a_model_without_a_trained_head_is_refused_by_name(tmp_path: Path):
    save_tiny_model(tmp_path)  # a causal language model
    with pytest.raises(UserError, match=f"{tmp_path}.* lack score.weight"):
        load(tmp_path)


def test_a_folder_that_is_no_model_is_refused_by_name(tmp_path: Path):
    with pytest.raises(UserError, match=f"{tmp_path}: cannot load it"):
        load(tmp_path)


def test_a_reward_that_is_nan_names_the_model_and_the_text(tmp_path: Path):
    folder = save_classifier(tmp_path, CONFIGS["llama"], 0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    bad = WORDS.index("cat") + 5
    model.get_input_embeddings().weight.data[bad] = float("nan")
    model.save_pretrained(folder)
    texts = [([{"role": "user", "content": "the dog"}], reply) for reply in ("yes", "cat")]
    with pytest.raises(UserError, match=f"{tmp_path}.*answer B is nan"):
        load(folder).score(texts, names=["answer A", "answer B"])


def test_padded_batches_hold_the_budget_and_every_text_once():
    lengths = [5, 30, 7, 7, 1, 12, 3]
    batches = list(padded_batches(lengths, 24))
    assert sorted(sum(batches, [])) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 24
