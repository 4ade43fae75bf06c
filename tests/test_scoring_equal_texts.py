"""Texts that are the same tokens to a reward have the same number, and rounding decides nothing."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import save_tiny_tokenizer, sentence

from vcsoup_dist.consistency.gaps import gap_vectors
from vcsoup_dist.consistency.measured_pairs import GapSettings, measure_block
from vcsoup_dist.consistency.scales import Scale
from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import ClassifierReward
from vcsoup_dist.records.scores import ScoreShard, summarise, write_scores
from vcsoup_dist.scoring.load_reward import load_reward
from vcsoup_dist.scoring.rewards import Text
from vcsoup_dist.scoring.worker import score_shard

CONFIGS = {
    "packed": transformers.LlamaConfig,
    "padded": transformers.OPTConfig,
    "an encoder": transformers.BertConfig,
}


def save(folder: Path, kind: str) -> Located:
    save_tiny_tokenizer(folder)
    torch.manual_seed(0)
    sizes: dict = {"vocab_size": 25, "hidden_size": 32, "num_hidden_layers": 2, "num_labels": 1}
    if kind == "padded":
        sizes |= {"ffn_dim": 64, "word_embed_proj_dim": 32, "num_attention_heads": 4}
    else:
        sizes |= {"intermediate_size": 64, "num_attention_heads": 4}
    config = CONFIGS[kind](**sizes, initializer_range=0.3, pad_token_id=0, eos_token_id=1)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    return Located(str(folder), None, None)


def texts_that_end_alike(pairs: int) -> list[Text]:
    """Pairs whose answers differ from the ninth word on alone."""
    draw = random.Random(0)
    texts: list[Text] = []
    for _ in range(pairs):
        prompt = [{"role": "user", "content": sentence(draw)}]
        start = " ".join(draw.choices(["cat", "dog", "tree", "old", "red"], k=8))
        texts += [(prompt, f"{start} {sentence(draw)}"), (prompt, f"{start} {sentence(draw)} no")]
    return texts


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("tokens_per_batch", [40, 4096])
def test_texts_that_are_cut_to_the_same_tokens_have_one_number(
    tmp_path, kind, dtype, tokens_per_batch
):
    settings = ClassifierReward(classifier="x", text="response", dtype=dtype, max_length=8)
    source = save(tmp_path, kind)
    reward = load_reward([settings], source, tokens_per_batch=tokens_per_batch)
    texts = texts_that_end_alike(20)
    scored = reward.score(reward.encode([(p, f"{a}") for p, a in texts]))
    firsts = [f"{' '.join(answer.split()[-8:])}" for _, answer in texts]
    assert scored.truncated_responses == len(texts)
    for i, j in enumerate(scored.first):
        assert (firsts[i] == firsts[j]) and (scored.rewards[i] == scored.rewards[j]).all()
    whole = load_reward([settings.model_copy(update={"max_length": None})], source)
    assert list(whole.score(whole.encode(texts)).first) == list(range(len(texts)))


def test_texts_that_a_template_makes_equal_are_counted_and_run_once(tmp_path):
    source = save(tmp_path, "packed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|> {{ m.content | trim }} <|end|> {% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> {% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    reward = load_reward([ClassifierReward(classifier="x")], source)
    prompt = [{"role": "user", "content": "the old tree"}]
    answers = ["a cat", "a cat \n", "a dog", "a red dog", "a  cat", "no"]
    scored = reward.score(reward.encode([(prompt, answer) for answer in answers]))
    assert list(scored.first) == [0, 0, 2, 3, 0, 5] and not scored.dropped
    shard = score_shard(["0" * 16, "1" * 16, "2" * 16], scored, 0)
    assert shard.equal_pairs == 1 and not shard.failures
    assert shard.chosen[0] == shard.rejected[0] == shard.chosen[2]


def test_scores_of_texts_that_all_differ_are_those_of_before(tmp_path):
    source = save(tmp_path, "packed")
    reward = load_reward([ClassifierReward(classifier="x", text="response")], source)
    encoded = reward.encode(texts_that_end_alike(8))
    expected = {}
    for batch, found in reward.choice.runner.run(encoded, reward.tokens_per_batch):
        expected |= dict(zip(batch, found["logits"][:, 0].tolist(), strict=True))
    scored = reward.score(encoded)
    assert scored.rewards[:, 0].tolist() == [expected[i] for i in range(len(encoded))]


def test_a_pair_whose_answer_the_template_drops_is_set_aside_with_that_reason(tmp_path):
    source = save(tmp_path, "packed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content']", "m['content'].split('old')[-1]"
    )
    tokenizer.save_pretrained(tmp_path)
    reward = load_reward([ClassifierReward(classifier="x")], source)
    prompt = [{"role": "user", "content": "the tree"}]
    texts = [(prompt, each) for each in ("a cat", "a dog", "a cat old dog", "no", "yes", "old no")]
    shard = score_shard(["0" * 16, "1" * 16, "2" * 16], reward.score(reward.encode(texts)), 0)
    reason = "the template drops part of the answer: its tokens do not contain its text"
    assert shard.failures == {1: f"chosen: {reason}", 2: f"rejected: {reason}"}
    assert np.isfinite(shard.chosen[0]) and np.isnan(shard.chosen[1:]).all()


@pytest.mark.parametrize(
    ("centre", "spread", "rounding", "constant"),
    [
        (4.0, 0.0, 1e-6, True),
        (4.0, 4e-7, 1e-6, True),
        (-300.0, 3e-5, 1e-6, True),
        (4.0, 4e-3, 2e-3, True),
        (4.0, 4e-3, 1e-6, False),
        (0.0, 1e-9, 1e-6, False),
        (0.0, 0.0, 1e-6, True),
    ],
)
def test_a_reward_is_constant_whose_deviation_is_rounding(
    tmp_path, centre, spread, rounding, constant
):
    draw = np.random.default_rng(0)
    sides = centre + spread * draw.standard_normal((2, 50))
    ids = [f"{i:016x}" for i in range(50)]
    write_scores(tmp_path / "train-00000.parquet", ScoreShard(ids, *sides, equal_pairs=3))
    summary = summarise(tmp_path, ["train-00000.parquet"], rounding)
    assert summary.constant == constant and summary.equal_pairs == 3
    assert summary.rounding == rounding


def test_differences_that_are_rounding_are_no_gap():
    chosen = np.array([0.1 + 0.2, 5.0000001, 5.00001, 1e-17, 2.0, np.nan, 5e6 + 1])[:, None]
    rejected = np.array([0.3, 5.0, 5.0, 0.0, 1.0, 1.0, 5e6])[:, None]
    gaps = gap_vectors(chosen, rejected, np.ones(1), np.ones(1))[:, 0]
    assert (gaps[[0, 1, 3]] == 0).all() and (gaps[[2, 4, 6]] > 0).all() and np.isnan(gaps[5])
    assert (gap_vectors(chosen, rejected, np.ones(1), np.full(1, np.inf))[:5] == 0).all()


def test_ties_and_zero_gaps_are_found_in_spite_of_rounding():
    chosen = np.array([[0.1 + 0.2, 1.0], [0.1 + 0.2, 2.0], [1.0, 1.0]])
    rejected = np.array([[0.3, 1.0 + 1e-9], [0.3, 1.0], [0.0, 0.0]])
    settings = GapSettings(Scale(np.ones(2), np.ones(2)), 0, 0.0)
    ids, nothing = np.arange(3, dtype=np.uint64), np.zeros(3, dtype=bool)
    found = measure_block(ids, chosen, rejected, settings, nothing, nothing, np.arange(0))
    assert found.reasons["tie of its own reward"] == 2 and found.columns.usable.tolist() == [
        0,
        0,
        1,
    ]
    shared = GapSettings(settings.scale, None, 0.0)
    alone = measure_block(ids, chosen, rejected, shared, nothing, nothing, np.arange(0))
    assert alone.reasons["zero gap"] == 1 and not alone.swapped.any()
