"""Classifier rewards equal one plain transformers forward per text, however they are batched."""

from __future__ import annotations

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import WORDS, save_tiny_model, save_tiny_tokenizer, sentence
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tokenizers import processors

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import ClassifierReward
from vcsoup_dist.scoring.heads import are_rounded
from vcsoup_dist.scoring.load_reward import load_reward
from vcsoup_dist.scoring.rewards import score_all
from vcsoup_dist.scoring.runners import LastTokenRunner, PackedRunner, padded_batches
from vcsoup_dist.scoring.texts import prompt_text

END = 1  # token id
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
    "gpt-oss, attention with sinks": transformers.GptOssConfig(
        **SIZES, head_dim=8, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
        sliding_window=8, pad_token_id=0,
    ),
    "bert": transformers.BertConfig(**SIZES, max_position_embeddings=128),
    "deberta": transformers.DebertaV2Config(**SIZES, max_position_embeddings=128),
    "bart, pools at eos": transformers.BartConfig(
        vocab_size=len(WORDS) + 5, d_model=32, encoder_layers=1, decoder_layers=1, num_labels=3,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=128, init_std=0.2, decoder_start_token_id=END,
    ),
}  # fmt: skip
ENCODERS = ("bert", "deberta", "bart, pools at eos")
WAYS = dict.fromkeys(CONFIGS, "packed") | dict.fromkeys(
    ("falcon, no attention interface", "gpt-oss, attention with sinks", *ENCODERS), "padded"
)


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
    """Texts of which two after one another share a prompt."""
    draw = random.Random(0)
    prompts = [[{"role": "user", "content": sentence(draw, 25)}] for _ in range(-(-count // 2))]
    for prompt in prompts[::3]:
        turns = ("user", "assistant")
        prompt[:0] = [{"role": role, "content": sentence(draw, 6)} for role in turns]
    return [(prompts[i // 2], sentence(draw, 25)) for i in range(count)]


def one_by_one(folder: Path, form: str, texts) -> np.ndarray:
    """Logits [texts, outputs] by transformers alone, one unpadded text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if not model.config.is_encoder_decoder:
        model.config.pad_token_id = None  # then it pools the very last token
    rows = []
    for prompt, response in texts:
        if form == "pair":
            inputs = tokenizer(prompt_text(prompt), response, return_tensors="pt")
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
    if name in ENCODERS and pad is None:
        pytest.skip("its embeddings need a pad token")
    folder = save_classifier(tmp_path, CONFIGS[name], pad)
    form = "pair" if name == "bert" else "chat_template"
    texts = draw_texts(12)
    expected = one_by_one(folder, form, texts)
    assert np.ptp(expected[:, 1]) > 0.1  # the texts differ enough to be told apart
    scorer = load(folder, output=1, text=form)
    if name.startswith("bart") and pad == END:  # where every padding would be one more eos
        assert "one text at a time" in scorer.description
    else:
        assert WAYS[name] in scorer.description
    rounding = 5e-5 if "soft-capped" in name else 1e-5  # a tanh, which libraries round differently
    for tokens_per_batch in (1, 60, 8192):
        scorer.tokens_per_batch = tokens_per_batch
        np.testing.assert_allclose(rewards_of(scorer, texts)[:, 0], expected[:, 1], atol=rounding)
    alone = np.concatenate([rewards_of(scorer, [text]) for text in texts[:3]])
    np.testing.assert_allclose(alone[:, 0], expected[:3, 1], atol=rounding)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_longest_text_are_those_of_a_text_alone(tmp_path, kind):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
        config = transformers.Phi3Config(
            **SIZES, num_key_value_heads=2, max_position_embeddings=128,
            original_max_position_embeddings=32, rope_parameters=rope | factors,
        )  # fmt: skip
    else:
        config = transformers.LlamaConfig(
            **SIZES, num_key_value_heads=2, max_position_embeddings=32, rope_parameters=rope
        )
    scorer = load(save_classifier(tmp_path, config, 0))
    texts = draw_texts(16)
    encoded = scorer.encode(texts)
    lengths = [len(text.ids) for text in encoded]
    assert min(lengths) < 32 and (max(lengths) > 40 or kind == "dynamic")
    expected = logits_of_ids(tmp_path, [text.ids for text in encoded])[:, 0]
    assert "packed (segments), texts of more than 32 tokens first" in scorer.description
    for tokens_per_batch in (1, 90, 8192):
        scorer.tokens_per_batch = tokens_per_batch
        np.testing.assert_allclose(rewards_of(scorer, texts)[:, 0], expected, atol=1e-5)


def logits_of_ids(folder: Path, rows: list[list[int]]) -> np.ndarray:
    """Logits [texts, outputs] by transformers alone, one text of token ids at a time."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None  # then it pools the very last token
    with torch.no_grad():
        return np.array([model(torch.tensor([ids])).logits[0].double().numpy() for ids in rows])


@pytest.mark.parametrize("name", ENCODERS)
def test_bf16_rewards_of_an_encoder_do_not_tie(tmp_path: Path, name: str):
    scorer = load(save_classifier(tmp_path, CONFIGS[name], 0), dtype="bf16")
    assert not are_rounded(scorer.choice.outputs)
    assert len(set(rewards_of(scorer, draw_texts(100))[:, 0])) > 90


@pytest.mark.parametrize("truncate", ["start", "end"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral, sliding window"])
def test_cut_texts_score_the_same_alone_and_with_those_they_share_a_prompt_with(
    tmp_path: Path, name: str, truncate: str
):
    scorer = load(save_classifier(tmp_path, CONFIGS[name], 0), max_length=24, truncate=truncate)
    texts = draw_texts(16)
    scored = scorer.score(scorer.encode(texts))
    assert 4 < scored.truncated < 16
    alone = np.concatenate([rewards_of(scorer, [text]) for text in texts])
    np.testing.assert_allclose(scored.rewards, alone, atol=1e-5)


def test_what_two_texts_begin_with_is_computed_once(llama: Path):
    scorer = load(llama)
    rows: list[int] = []
    scorer.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    prompt = [{"role": "user", "content": " ".join(WORDS)}]  # 20 words, 3 marks before the answer
    encoded = scorer.encode([(prompt, "yes"), (prompt, "no no"), (prompt[:], "the cat")])
    scorer.score(encoded)
    assert rows == [sum(len(text.ids) for text in encoded) - 2 * 23]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_whose_texts_leak_into_each_other_is_run_one_by_one(llama, monkeypatch, dtype):
    texts = draw_texts(3)
    expected = one_by_one(llama, "chat_template", texts)[:, 0]

    def leak(run):
        def leaking(self, texts, tokens_per_batch):
            for batch, outputs in run(self, texts, tokens_per_batch):
                together = len(batch) > 1
                yield batch, {head: rows + together for head, rows in outputs.items()}

        return leaking

    for way in (PackedRunner, LastTokenRunner):
        monkeypatch.setattr(way, "run", leak(way.run))
    scorer = load(llama, dtype=dtype)
    assert "one text at a time" in scorer.description
    assert "not packed (segments), which changes its outputs; not padded" in scorer.description
    tolerance = {"fp32": 1e-5, "bf16": 0.1}[dtype]
    np.testing.assert_allclose(rewards_of(scorer, texts)[:, 0], expected, atol=tolerance)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("llama"), CONFIGS["llama"], END)


def load(folder: Path, tokens_per_batch: int | None = None, **settings):
    return load_all(folder, [settings], tokens_per_batch)


def load_all(folder: Path, settings: list[dict], tokens_per_batch: int | None = None):
    """One model for several values."""
    rewards = [ClassifierReward(classifier=str(folder), **each) for each in settings]
    located = Located(str(folder), None, None)
    return load_reward(rewards, located, tokens_per_batch=tokens_per_batch)


def rewards_of(scorer, texts) -> np.ndarray:
    return score_all(scorer, texts, [str(i) for i in range(len(texts))])


def test_one_model_gives_the_rewards_of_several_values(llama: Path):
    texts = draw_texts(5)
    logits = one_by_one(llama, "chat_template", texts)
    scorer = load_all(
        llama,
        [
            {"output": 2},
            {"output": "LABEL_1"},
            {"output": 2, "sign": -1},
            {"output": 1, "softmax": True},
        ],
    )
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.stack([logits[:, 2], logits[:, 1], -logits[:, 2], shares[:, 1]], axis=1)
    np.testing.assert_allclose(rewards_of(scorer, texts), expected, atol=1e-5)


@pytest.mark.parametrize("unknown", [3, "LABEL_9"])
def test_an_output_that_is_not_there_is_refused_by_its_value_with_those_that_are(llama, unknown):
    rewards = [ClassifierReward(classifier=str(llama), output=output) for output in (0, unknown)]
    wanted = "values.cheap: no output .* outputs 0 to 2 and names .*LABEL_2"
    with pytest.raises(UserError, match=wanted):
        load_reward(rewards, Located(str(llama), None, None), values=["good", "cheap"])


@pytest.mark.parametrize("wrong", [-1, True, 1.0])
def test_an_output_is_an_index_or_a_name(wrong):
    with pytest.raises(ValidationError, match="output"):
        ClassifierReward(classifier="m", output=wrong)


def test_softmax_of_a_single_output_is_refused(tmp_path: Path):
    config = type(CONFIGS["llama"])(**SIZES | {"num_labels": 1}, num_key_value_heads=2)
    with pytest.raises(UserError, match="`softmax` of its only output is always 1"):
        load(save_classifier(tmp_path, config, 0), softmax=True)


def test_a_head_that_is_not_there_is_refused_with_those_that_are(llama: Path):
    with pytest.raises(UserError, match="returns no `rewards`, but `logits`.*fix `head`"):
        load(llama, head="rewards")


def test_a_thread_encodes_beside_one_that_scores(llama: Path):
    scorer, texts = load(llama), draw_texts(40)
    expected = scorer.score(scorer.encode(texts)).rewards
    encoded = scorer.encode(texts)
    with ThreadPoolExecutor(1) as thread:
        for _ in range(3):
            following = thread.submit(scorer.encode, texts)
            np.testing.assert_array_equal(scorer.score(encoded).rewards, expected)
            encoded = following.result()


def test_bf16_scores_hardly_depend_on_the_batches(llama: Path):
    texts = draw_texts(8)
    exact, rounded = (rewards_of(load(llama, dtype=kind), texts) for kind in ("fp32", "bf16"))
    scorer = load(llama, dtype="bf16")
    alone = np.concatenate([rewards_of(scorer, [text]) for text in texts])
    assert np.abs(rounded - alone).max() <= 1e-2 * np.abs(exact).max()
    assert 0 < np.abs(rounded - exact).max() < 0.1


def test_the_token_budget_is_the_devices_unless_one_is_given(llama: Path):
    assert "1024 tokens per batch" in load(llama).description
    assert "77 tokens per batch" in load(llama, tokens_per_batch=77).description


def test_a_kernel_that_cannot_be_had_is_refused(llama: Path, tmp_path: Path):
    with pytest.raises(UserError, match="attention `torch_varlen`"):
        load(llama, attention="torch_varlen")
    bert = save_classifier(tmp_path, CONFIGS["bert"], 0)
    with pytest.raises(UserError, match="attention `segments` is for packed texts"):
        load(bert, attention="segments")


def test_truncated_texts_are_counted_and_equal_the_cut_text_scored_alone(llama: Path):
    words = " ".join(WORDS)  # 22 tokens
    texts = [
        ([{"role": "user", "content": words}], "yes no"),
        ([{"role": "user", "content": "yes"}], words),
        ([{"role": "user", "content": "yes"}], "no"),
    ]
    scorer = load(llama, max_length=20)
    scored = scorer.score(scorer.encode(texts))
    assert (scored.truncated, scored.truncated_responses) == (2, 1)
    # <|user|> leaves first, then words; 6 tokens are marks and the answer.
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    chat = [*texts[0][0], {"role": "assistant", "content": texts[0][1]}]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)[:, -20:]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(llama).eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, 0].item()
    assert scored.rewards[0, 0] == pytest.approx(expected, abs=1e-5)


def test_a_length_beyond_the_model_is_refused(llama: Path):
    with pytest.raises(UserError, match="max_length 129 is more than the 128 positions of the mod"):
        load(llama, max_length=129)


def test_a_length_overrules_the_tokenizers_limit(llama: Path):
    assert "at most 100 tokens (the tokenizer's limit)" in load(llama).description
    assert "at most 128 tokens (max_length)" in load(llama, max_length=128).description


def test_positions_that_count_from_the_pad_token_are_fewer_than_the_table(tmp_path: Path):
    pad = 2
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=20, type_vocab_size=1)
    scorer = load(save_classifier(tmp_path, config, pad), text="pair")
    scored = scorer.score(scorer.encode(draw_texts(12)))
    assert scorer.limit.tokens == 20 - pad - 1 and scored.truncated > 6 and not scored.failures


def test_a_limit_below_one_is_none(tmp_path: Path):
    config = transformers.XLNetConfig(
        vocab_size=len(WORDS) + 5, d_model=32, n_layer=1, n_head=4, d_inner=48, num_labels=3
    )
    assert config.max_position_embeddings == -1
    folder = save_classifier(tmp_path, config, 0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = -1
    tokenizer.save_pretrained(folder)
    assert "no limit of tokens" in load(folder).description


def test_a_model_without_a_trained_head_is_refused_by_name(tmp_path: Path):
    save_tiny_model(tmp_path)  # a causal language model
    with pytest.raises(UserError, match=f"{tmp_path}.* lack score.weight.*; name a model"):
        load(tmp_path)


def test_a_value_head_in_a_file_of_its_own_is_named_with_the_way_to_mend_it(tmp_path: Path):
    save_tiny_model(tmp_path)
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    save_file(head, tmp_path / "value_head.safetensors")
    with pytest.raises(
        UserError, match="lack score.weight.*value_head.safetensors.*v_head.summary"
    ):
        load(tmp_path)


def test_a_head_under_another_librarys_name_is_named(llama: Path, tmp_path: Path):
    folder = shutil.copytree(llama, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["score_head.weight"] = weights.pop("score.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack score.weight.*they have score_head.weight instead"):
        load(folder)


def test_a_folder_that_is_no_model_is_refused_by_name(tmp_path: Path):
    with pytest.raises(UserError, match=f"{tmp_path}: is empty"):
        load(tmp_path)


def spoiled(folder: Path, token: int) -> Path:
    """A Llama whose embedding of one token is NaN."""
    save_classifier(folder, CONFIGS["llama"], 0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    model.get_input_embeddings().weight.data[token] = float("nan")
    model.save_pretrained(folder)
    return folder


def test_a_reward_that_is_nan_is_that_texts_failure_alone(tmp_path: Path):
    scorer = load(spoiled(tmp_path, WORDS.index("house") + 5))
    texts = [([{"role": "user", "content": "the dog"}], reply) for reply in ("yes", "house", "no")]
    scored = scorer.score(scorer.encode(texts))
    assert scored.failures == {1: "its reward is nan"}
    assert np.isfinite(scored.rewards[[0, 2]]).all() and np.isnan(scored.rewards[1]).all()
    with pytest.raises(UserError, match=f"{tmp_path}.*no reward of B: its reward is nan"):
        score_all(scorer, texts, ["A", "B", "C"])


def test_a_model_that_gives_nan_on_plain_texts_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="outputs of plain texts are NaN or infinite"):
        load(spoiled(tmp_path, END))


def test_a_prompt_that_the_template_refuses_is_that_texts_failure(llama: Path, tmp_path: Path):
    folder = shutil.copytree(llama, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    refusal = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(refusal + template)
    scorer = load(folder)
    (good,) = draw_texts(1)
    bad = ([{"role": "system", "content": "the"}, *good[0]], "yes")
    scored = scorer.score(scorer.encode([good, bad, good]))
    assert list(scored.failures) == [1] and "no system" in scored.failures[1]
    np.testing.assert_allclose(scored.rewards[[0, 2]], rewards_of(scorer, [good, good]), atol=1e-5)


def test_padded_batches_hold_the_budget_and_every_text_once():
    lengths = [5, 30, 7, 7, 1, 12, 3]
    batches = list(padded_batches(lengths, 24))
    assert sorted(sum(batches, [])) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 24
