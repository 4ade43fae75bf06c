"""Packed forwards equal one-by-one forwards; log-probs equal float64."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward import logprobs, template
from vcsoup_dist.forward.answers import (
    AnswerLogps,
    pack_answers,
    pack_pairs,
    pair_tokens,
    sum_per_sequence,
)
from vcsoup_dist.forward.attention import NAMES, choose_attention, register_kernels
from vcsoup_dist.forward.hidden import can_pack, longest_together
from vcsoup_dist.forward.logprobs import Transform
from vcsoup_dist.forward.packing import budget_batches, pack
from vcsoup_dist.forward.template import (
    Encoded,
    RefusedByTemplate,
    Unusable,
    encode_answer,
    encode_pair,
    encode_prompt,
)
from vcsoup_dist.training.engine import check_architecture, switch_off_dropout

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
    "qwen3, sliding window in its last layer": transformers.Qwen3Config(
        **SMALL,
        num_key_value_heads=2,
        head_dim=8,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
    ),
    "gemma2, soft-capped scores and logits, sliding window": transformers.Gemma2Config(
        **SMALL,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=5,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=1.5,
    ),
    "gemma3, sliding window": transformers.Gemma3TextConfig(
        **SMALL, num_key_value_heads=2, head_dim=8, sliding_window=5
    ),
    "granite, scaled logits": transformers.GraniteConfig(
        **SMALL, num_key_value_heads=2, logits_scaling=3.0
    ),
    "cohere, scaled logits": transformers.CohereConfig(
        **SMALL, num_key_value_heads=2, logit_scale=0.25
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=1
    ),
}


def plain_logps(model, encoded: list[Encoded]) -> torch.Tensor:
    """One sequence at a time through transformers' own eager attention."""
    parts = []
    for each in encoded:
        logps = model(torch.tensor([each.ids]), use_cache=False).logits[0].log_softmax(-1)
        parts += [logps[i - 1, each.ids[i]] for i in range(each.start, len(each.ids))]
    return torch.stack(parts)


def eager_model(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation="eager"
    )
    switch_off_dropout(model)
    return model


def assert_equal_in_value_and_gradient(model, encoded, answers, training):
    expected = plain_logps(model.eval(), encoded)
    upstream = torch.linspace(-1, 1, len(expected))
    (expected * upstream).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    model.set_attn_implementation(
        choose_attention("auto", "cpu", torch.float32, config=model.config)
    )
    logps = AnswerLogps(model).train(training)(answers)
    (logps * upstream).sum().backward()

    assert torch.allclose(logps, expected, rtol=0, atol=2e-6)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-5), name
    return logps


@pytest.mark.models
@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("training", [False, True])
def test_packed_answers_equal_plain_forwards_in_value_and_gradient(config, training):
    model = eager_model(config)
    lengths = [(7, 2), (12, 5), (3, 1), (20, 10)]
    encoded = [Encoded(torch.randint(0, 50, (n,)).tolist(), start) for n, start in lengths]
    answers = pack_answers(encoded)

    logps = assert_equal_in_value_and_gradient(model, encoded, answers, training)

    parts = logps.split([each.answer_length for each in encoded])
    sums = torch.stack([part.sum() for part in parts])
    assert torch.allclose(sum_per_sequence(logps, answers, len(encoded)), sums.double(), atol=1e-5)


@pytest.mark.models
@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("training", [False, True])
def test_pairs_that_share_their_prompt_equal_plain_forwards_in_value_and_gradient(config, training):
    model = eager_model(config)
    drawn = torch.randint(0, 50, (99,)).tolist()
    pairs = [
        # Prompt of 8, then answers; answers with a common start; other boundaries.
        (Encoded(drawn[:14], 8), Encoded(drawn[:8] + drawn[20:29], 8)),
        (Encoded(drawn[30:44], 5), Encoded(drawn[30:38] + drawn[50:52], 5)),
        (Encoded(drawn[60:66], 4), Encoded(drawn[60:64] + drawn[70:80], 3)),
        # Nothing in common; one the beginning of the other, both ways round.
        (Encoded([1, 2, 3], 1), Encoded([4, 5, 6, 7], 2)),
        (Encoded(drawn[80:90], 2), Encoded(drawn[80:85], 2)),
        (Encoded(drawn[80:85], 2), Encoded(drawn[80:90], 2)),
    ]
    answers = pack_pairs(pairs)
    encoded = [side for pair in pairs for side in pair]
    assert answers.pack.input_ids.shape[1] == sum(pair_tokens(*pair) for pair in pairs)
    assert answers.pack.input_ids.shape[1] < sum(len(each.ids) for each in encoded)

    assert_equal_in_value_and_gradient(model, encoded, answers, training)


@pytest.mark.models
def test_layers_that_are_not_attention_over_segments_are_refused():
    config = transformers.LlamaConfig(**SMALL)
    model = transformers.LlamaForCausalLM(config)
    assert can_pack(model)
    config.layer_types = ["full_attention", "chunked_attention"]
    assert not can_pack(model)


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
    with pytest.raises(UserError, match="not a decoder|linear"):
        AnswerLogps(model)(pack_answers([Encoded([1, 2, 3], 1)]))


@pytest.mark.models
@pytest.mark.parametrize(
    "config",
    [
        transformers.OPTConfig(
            vocab_size=50,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            dropout=0.5,
            attention_dropout=0.5,
            layerdrop=0.5,
        ),
        transformers.SeedOssConfig(**SMALL, num_key_value_heads=2, head_dim=8),
    ],
    ids=["opt", "seed_oss"],
)
def test_nothing_is_random_once_dropout_is_off(config):
    torch.manual_seed(0)  # layerdrop may leave out both layers, twice in a row
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    ids = torch.randint(0, 50, (1, 20))
    assert not torch.equal(model(ids).logits, model(ids).logits)
    switch_off_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    "config",
    [
        transformers.FalconConfig(num_hidden_layers=1),
        transformers.BloomConfig(n_layer=1),
    ],
    ids=["falcon", "bloom"],
)
def test_an_architecture_that_cannot_be_packed_is_refused_before_anything_is_loaded(config):
    with pytest.raises(UserError, match="cannot be trained on packs"):
        check_architecture(config, 100)


def test_positions_that_depend_on_the_pack_are_refused_beyond_the_original_context():
    config = transformers.LlamaConfig(
        **SMALL,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    )
    check_architecture(config, 64)
    with pytest.raises(UserError, match="training.max_length: .*set it to 64 or less"):
        check_architecture(config, 65)


LONG_ROPE = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}


def test_long_positions_too_are_refused_beyond_the_original_context():
    config = transformers.Phi3Config(
        **SMALL,
        max_position_embeddings=128,
        original_max_position_embeddings=32,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **LONG_ROPE},
    )
    check_architecture(config, 32)
    with pytest.raises(UserError, match="training.max_length: .*set it to 32 or less"):
        check_architecture(config, 33)


def test_the_longest_packed_sequence_is_read_from_any_place_in_a_config():
    plain = transformers.LlamaConfig(**SMALL, max_position_embeddings=64)
    assert longest_together(plain) is None
    assert longest_together(transformers.GPT2Config()) is None  # it has no rotary positions
    by_layer = transformers.Gemma3TextConfig(**SMALL, max_position_embeddings=64)
    assert longest_together(by_layer) is None
    by_layer.rope_parameters["full_attention"] |= {
        "rope_type": "longrope",
        "original_max_position_embeddings": 16,
    }
    assert longest_together(by_layer) == 16


@pytest.mark.models
def test_a_head_whose_scale_is_not_known_is_refused():
    config = transformers.LlamaConfig(**SMALL)
    config.lm_head_multiplier = 0.5
    with pytest.raises(UserError, match="lm_head_multiplier"):
        AnswerLogps(transformers.LlamaForCausalLM(config))


@pytest.mark.parametrize("wanted", ["flash_attn", "torch_varlen"])
def test_a_kernel_that_this_machine_lacks_is_an_error(wanted):
    with pytest.raises(UserError, match=wanted):
        choose_attention(wanted, "cpu", torch.bfloat16)


TRANSFORMS = [Transform(), Transform(scale=0.3), Transform(2.0, softcap=3.0)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_chunked_logps_equal_float64_in_value_and_gradient(monkeypatch, bias, transform):
    monkeypatch.setattr(logprobs, "CHUNK", 5 * 30)
    torch.manual_seed(1)
    hidden = torch.randn(13, 8, requires_grad=True)
    weight = torch.randn(30, 8, requires_grad=True)
    offset = torch.randn(30, requires_grad=True) if bias else None
    targets, upstream = torch.randint(0, 30, (13,)), torch.randn(13)
    exact = [
        None if each is None else each.detach().double().requires_grad_()
        for each in (hidden, weight, offset)
    ]
    logits = transform.scale * torch.nn.functional.linear(*exact)
    if transform.softcap:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (expected * upstream).sum().backward()

    logps = logprobs.token_logps(hidden, weight, offset, targets, transform)
    (logps * upstream).sum().backward()

    assert logps.dtype == torch.float32
    assert torch.allclose(logps.double(), expected, atol=1e-5)
    for ours, oracle in zip((hidden, weight, offset), exact, strict=True):
        if ours is not None:
            assert torch.allclose(ours.grad.double(), oracle.grad, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Most elements of any tensor that an operation makes."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor):
                self.most = max(self.most, each.numel())
        return result


def test_logits_of_all_tokens_never_exist_in_forward_or_backward(monkeypatch):
    tokens, vocabulary, width, rows = 300, 1000, 8, 20
    monkeypatch.setattr(logprobs, "CHUNK", rows * vocabulary)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    with LargestTensor() as seen:
        logps = logprobs.token_logps(hidden, weight, None, torch.zeros(tokens, dtype=torch.long))
        logps.sum().backward()
    assert seen.most == rows * vocabulary


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


@pytest.mark.models
def test_answer_tokens_are_those_after_the_prompt_and_end_with_the_end_token(tiny_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    prompt = [{"role": "user", "content": "the cat"}]
    ids = encode_prompt(tokenizer, prompt)
    encoded = encode_answer(tokenizer, prompt, ids, "a dog")
    assert encoded.ids[: encoded.start] == ids
    assert tokenizer.decode(encoded.ids[encoded.start :]).split() == ["a", "dog", "<|end|>"]


@pytest.mark.models
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
    assert encode_pair(tokenizer, prompt, *answers, 14, False) is Unusable.TOO_LONG
    assert encode_pair(tokenizer, prompt, *answers, 7, True) is Unusable.TOO_LONG


@pytest.mark.models
@pytest.mark.parametrize("answer", ["", "  ", "<|end|>", " <|end|> <|end|> "])
def test_an_answer_of_nothing_but_end_tokens_is_none(tiny_model, answer):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    prompt = [{"role": "user", "content": "the cat"}]
    assert encode_pair(tokenizer, prompt, "a dog", answer, 100, True) is Unusable.EMPTY
    assert encode_pair(tokenizer, prompt, answer, "a dog", 100, True) is Unusable.EMPTY


@pytest.mark.models
def test_answers_that_are_the_same_tokens_are_no_pair(tiny_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    prompt = [{"role": "user", "content": "the cat"}]
    assert encode_pair(tokenizer, prompt, "a dog", "a  dog", 100, True) is Unusable.SAME


@pytest.mark.models
def test_a_template_that_is_not_prefix_stable_is_refused(tiny_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ 'the big ' if messages|length > 1 else 'the small ' }}" + str(
        tokenizer.chat_template
    )
    prompt = [{"role": "user", "content": "the cat"}]
    with pytest.raises(UserError, match=r"not prefix-stable.*'big <\|user\|>.*'small <"):
        encode_pair(tokenizer, prompt, "yes", "no", 100, True)


@pytest.mark.models
def test_a_token_merged_across_the_boundary_is_the_answers(tiny_model):
    """A prompt that ends in the middle of a word, as templates without white space do."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if not add_generation_prompt %}{{ ' <|end|>' }}{% endif %}"
    )
    prompt = [{"role": "user", "content": "the cat a"}]
    pair = encode_pair(tokenizer, prompt, "nd dog", "nd cat", 100, True)
    assert not isinstance(pair, Unusable)
    answer = pair[0].ids[pair[0].start :]
    assert tokenizer.decode(answer).split() == ["and", "dog", "<|end|>"]


@pytest.mark.models
def test_a_cut_prompt_keeps_its_bos(tiny_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ '<unk> ' }}" + str(tokenizer.chat_template)
    tokenizer.bos_token = "<unk>"
    prompt = [{"role": "user", "content": "the cat sees the dog and the house"}]
    whole = encode_pair(tokenizer, prompt, "yes", "no", 100, True)
    cut = encode_pair(tokenizer, prompt, "yes", "no", 10, True)
    for full, short in zip(whole, cut, strict=True):
        assert short.ids == [tokenizer.bos_token_id, *full.ids[-9:]]
        assert short.ids[short.start :] == full.ids[full.start :]


@pytest.mark.models
def test_a_pair_that_the_template_refuses_is_refused(tiny_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + str(tokenizer.chat_template)
    )
    prompt = [{"role": "system", "content": "big"}, {"role": "user", "content": "the cat"}]
    with pytest.raises(RefusedByTemplate, match="no system"):
        encode_pair(tokenizer, prompt, "yes", "no", 100, True)
    assert not isinstance(encode_pair(tokenizer, prompt[1:], "yes", "no", 100, True), Unusable)


@pytest.mark.models
def test_a_template_that_asks_for_todays_date_gets_a_fixed_one(tiny_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} " + str(tokenizer.chat_template)
    prompt = [{"role": "user", "content": "the cat"}]
    text = template._render(tokenizer, prompt, tokenize=False)
    assert text.startswith("26 Jul 2024 <|user|>")


@pytest.mark.models
def test_an_empty_thought_is_an_empty_answer(tiny_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<think>", "</think>"])
    prompt = [{"role": "user", "content": "the cat"}]
    answer = "<think> </think>"
    assert encode_pair(tokenizer, prompt, "yes", answer, 100, True) is Unusable.EMPTY


@pytest.mark.models
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_transformers_loads_a_model_with_each_kernels_name(tiny_model, name):
    register_kernels()
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=name)
    assert model.config._attn_implementation == name


def bottom_right_flash(q, k, v, cu_q, cu_k, max_q, max_k, *, causal, softmax_scale, **options):
    """What flash-attn computes: causal, aligned at the end where queries are fewer than keys."""
    assert causal and options == {"dropout_p": 0.0, "window_size": (-1, -1), "softcap": 0.0}
    assert cu_q.dtype == cu_k.dtype == torch.int32 and q.stride(-1) == k.stride(-1) == 1
    parts = []
    for s in range(len(cu_q) - 1):
        queries, keys, values = (
            q[cu_q[s] : cu_q[s + 1]],
            *(x[cu_k[s] : cu_k[s + 1]] for x in (k, v)),
        )
        assert len(queries) <= max_q and len(keys) <= max_k
        seen = torch.ones(len(queries), len(keys), dtype=torch.bool).tril(len(keys) - len(queries))
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                queries.transpose(0, 1),
                keys.transpose(0, 1),
                values.transpose(0, 1),
                attn_mask=seen,
                scale=softmax_scale,
                enable_gqa=True,
            ).transpose(0, 1)
        )
    return torch.cat(parts)


@pytest.mark.models
def test_flash_attn_is_called_so_that_its_alignment_gives_shared_prompts(monkeypatch):
    """The package needs a GPU; its documented semantics stand in for it, its arguments are ours."""
    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = bottom_right_flash
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    register_kernels()
    model = eager_model(ARCHITECTURES["llama, grouped queries, tied"])
    pairs = [
        (Encoded(list(range(14)), 8), Encoded([*range(8), 20, 21, 22], 8)),
        (Encoded([1, 2, 3], 1), Encoded([4, 5, 6, 7], 2)),
    ]
    expected = plain_logps(model.eval(), [side for pair in pairs for side in pair])
    model.set_attn_implementation(NAMES["flash_attn"])
    assert torch.allclose(AnswerLogps(model)(pack_pairs(pairs)), expected, atol=2e-6)


@pytest.mark.models
@pytest.mark.parametrize("missing", ["bos_token", "eos_token", "pad_token"])
def test_a_tokenizer_without_special_tokens_encodes_the_same(tiny_model, missing):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    prompt = [{"role": "user", "content": "the cat"}]
    expected = encode_pair(tokenizer, prompt, "a dog", "no", 100, True)
    setattr(tokenizer, missing, None)
    assert encode_pair(tokenizer, prompt, "a dog", "no", 100, True) == expected
