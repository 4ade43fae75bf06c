"""Packed forwards equal one-by-one forwards; log-probs equal float64."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward import logprobs
from vcsoup_dist.forward.answers import AnswerLogps, pack_answers, sum_per_sequence
from vcsoup_dist.forward.attention import choose_attention
from vcsoup_dist.forward.packing import budget_batches, pack
from vcsoup_dist.forward.template import Encoded, encode_answer, encode_pair, encode_prompt

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "llama, grouped queries, tied": transformers.LlamaConfig(
        **SMALL, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "qwen3": transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "mistral, sliding window": transformers.MistralConfig(
        **SMALL, num_key_value_heads=2, sliding_window=4
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=1
    ),
}


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("training", [False, True])
def test_packed_answers_equal_plain_forwards_in_value_and_gradient(config, training):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    lengths = [(7, 2), (12, 5), (3, 1), (20, 10)]
    encoded = [Encoded(torch.randint(0, 50, (n,)).tolist(), start) for n, start in lengths]
    plain = []
    for each in encoded:
        logps = model.eval()(torch.tensor([each.ids]), use_cache=False).logits[0].log_softmax(-1)
        plain += [logps[i - 1, each.ids[i]] for i in range(each.start, len(each.ids))]
    expected = torch.stack(plain)
    expected.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    model.set_attn_implementation(choose_attention("auto", "cpu", torch.float32))
    answers = pack_answers(encoded)
    logps = AnswerLogps(model).train(training)(answers)
    logps.sum().backward()

    assert torch.allclose(logps, expected, atol=2e-6)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-5), name
    parts = logps.split([each.answer_length for each in encoded])
    sums = torch.stack([part.sum() for part in parts])
    assert torch.allclose(sum_per_sequence(logps, answers, len(encoded)), sums, atol=1e-5)


def test_an_architecture_that_hides_the_segments_from_its_attention_is_refused():
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        is_decoder=False,
    )
    model = transformers.BertLMHeadModel(config)
    with pytest.raises(UserError, match="no decoder|linear"):
        AnswerLogps(model)(pack_answers([Encoded([1, 2, 3], 1)]))


def test_a_head_with_soft_capped_logits_is_refused():
    config = transformers.LlamaConfig(**SMALL)
    config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match="final_logit_softcapping"):
        AnswerLogps(transformers.LlamaForCausalLM(config))


@pytest.mark.parametrize("wanted", ["flash_attn", "torch_varlen"])
def test_a_kernel_that_this_machine_lacks_is_an_error(wanted):
    with pytest.raises(UserError, match=wanted):
        choose_attention(wanted, "cpu", torch.bfloat16)


@pytest.mark.parametrize("bias", [False, True])
def test_chunked_logps_equal_float64_in_value_and_gradient(monkeypatch, bias):
    monkeypatch.setattr(logprobs, "CHUNK", 5)
    torch.manual_seed(1)
    hidden = torch.randn(13, 8, requires_grad=True)
    weight = torch.randn(30, 8, requires_grad=True)
    offset = torch.randn(30, requires_grad=True) if bias else None
    targets, upstream = torch.randint(0, 30, (13,)), torch.randn(13)
    exact = [
        None if each is None else each.detach().double().requires_grad_()
        for each in (hidden, weight, offset)
    ]
    logits = torch.nn.functional.linear(*exact)
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (expected * upstream).sum().backward()

    logps = logprobs.token_logps(hidden, weight, offset, targets)
    (logps * upstream).sum().backward()

    assert logps.dtype == torch.float32
    assert torch.allclose(logps.double(), expected, atol=1e-5)
    for ours, oracle in zip((hidden, weight, offset), exact, strict=True):
        if ours is not None:
            assert torch.allclose(ours.grad.double(), oracle.grad, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60))
def test_budget_batches_hold_every_item_once_and_keep_the_budget(lengths, budget):
    batches = budget_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget


def test_positions_start_again_with_every_sequence():
    packed = pack([[5, 6, 7], [8], [9, 10]])
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert packed.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert packed.max_seqlen == 3


def test_answer_tokens_are_those_after_the_prompt_and_end_with_the_end_token(tiny_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    prompt = [{"role": "user", "content": "the cat"}]
    ids = encode_prompt(tokenizer, prompt)
    encoded = encode_answer(tokenizer, prompt, ids, "a dog")
    assert encoded.ids[: encoded.start] == ids
    assert tokenizer.decode(encoded.ids[encoded.start :]).split() == ["a", "dog", "<|end|>"]


def test_an_overlong_pair_loses_the_same_prompt_tokens_on_both_sides_and_no_answer(tiny_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    prompt = [{"role": "user", "content": "the cat sees the dog and the house"}]
    answers = ("yes", "no the big red river runs")
    whole = encode_pair(tokenizer, prompt, *answers, 100, True)
    cut = encode_pair(tokenizer, prompt, *answers, 14, True)
    assert whole and cut
    for full, short in zip(whole, cut, strict=True):
        assert short.ids[short.start :] == full.ids[full.start :]
        assert short.ids == full.ids[len(full.ids) - len(short.ids) :]
    assert cut[0].start == cut[1].start
    assert max(len(each.ids) for each in cut) == 14
    assert encode_pair(tokenizer, prompt, *answers, 14, False) is None
    assert encode_pair(tokenizer, prompt, *answers, 7, True) is None
