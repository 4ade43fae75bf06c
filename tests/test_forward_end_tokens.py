"""At which tokens an answer ends: template, tokenizer and generation config together."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import save_tiny_tokenizer
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from vcsoup_dist.errors import UserError
from vcsoup_dist.evaluation.generate import generate_answers, load_model
from vcsoup_dist.evaluation.prompts import Prompt
from vcsoup_dist.forward.end_tokens import end_tokens, template_end
from vcsoup_dist.recipe import Evaluation, Training
from vcsoup_dist.training.base_checks.check import check_base
from vcsoup_dist.training.engine import save_auxiliary_files

pytestmark = pytest.mark.models

END, USER, UNKNOWN = 1, 2, 4
TURN = "{{ '<|' + m['role'] + '|> ' + m['content'] + ' "


def templated(tokenizer, end: str):
    """With a template that puts `end` after every turn."""
    tokenizer.chat_template = (
        "{% for m in messages %}" + TURN + end + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
    )
    return tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    save_tiny_tokenizer(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


ENDS = {
    "its own": ("<|end|> ", END),
    "with a line end": ("\\n<|end|>\\n", END),
    "the first of two": ("<|user|> <|end|>", USER),
    "none": ("", None),
    "a word": ("no", None),
}


@pytest.mark.parametrize("end, token", ENDS.values(), ids=ENDS.keys())
def test_a_templates_end_is_the_first_special_token_after_the_answer(tokenizer, end, token):
    assert template_end(templated(tokenizer, end)) == token


def test_answers_end_at_every_token_that_template_tokenizer_and_generation_config_know(tokenizer):
    templated(tokenizer, "<|user|>")
    assert end_tokens(tokenizer, GenerationConfig(eos_token_id=7)) == [7, END, USER]
    assert end_tokens(tokenizer, GenerationConfig(eos_token_id=[USER, END])) == [USER, END]
    assert end_tokens(tokenizer, None) == [END, USER]
    tokenizer.chat_template = "{{ raise_exception('not so') }}"
    assert end_tokens(tokenizer, GenerationConfig()) == [END]


def test_check_warns_of_a_templates_end_that_the_generation_config_lacks(tiny_model, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    GenerationConfig(eos_token_id=0).save_pretrained(base)
    settings = Evaluation(max_prompt_tokens=32, max_new_tokens=32)
    (warning,) = check_base(str(base), None, Training(), settings)
    assert "ends an answer with 1 ('<|end|>'), its generation config stops at 0 ('<|pad|>')" in (
        warning
    )
    templated(AutoTokenizer.from_pretrained(base), "").save_pretrained(base)
    (warning,) = check_base(str(base), None, Training(), settings)
    assert "ends an answer with no special token" in warning


def test_a_saved_policy_has_every_end_and_answers_the_same_as_before(tokenizer, tmp_path):
    """A head that always says <|user|>, by which the template ends a turn."""
    templated(tokenizer, "<|user|>")
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=25, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1, pad_token_id=0, eos_token_id=0, bos_token_id=None)
    )  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    # Equal logits: greedy decoding takes the first, <|pad|>, until a bias prefers another.
    prompts = [Prompt("p", "d", [{"role": "user", "content": "the cat"}])]
    settings = Evaluation(max_prompt_tokens=32, max_new_tokens=5, temperature=0, dtype="fp32")
    model.generation_config.eos_token_id = 7
    (answer,) = generate_answers(model, tokenizer, prompts, settings)
    assert (answer.tokens, answer.finished) == (5, False)
    model.lm_head.bias = torch.nn.Parameter(torch.eye(25)[USER])
    (answer,) = generate_answers(model, tokenizer, prompts, settings)
    assert (answer.tokens, answer.finished) == (1, True)
    model.lm_head.bias = None
    save_auxiliary_files(model, tokenizer, tmp_path / "policy")
    saved = GenerationConfig.from_pretrained(tmp_path / "policy")
    assert saved.eos_token_id == [7, END, USER]


def test_a_generation_config_that_knows_every_end_is_saved_as_it_was(tiny_model, tmp_path):
    model, tokenizer = load_model(str(tiny_model), None, "fp32", "cpu")
    save_auxiliary_files(model, tokenizer, tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == END


def test_a_policy_keeps_sampling_values_that_stand_without_do_sample(tiny_model, tmp_path):
    model, tokenizer = load_model(str(tiny_model), None, "fp32", "cpu")
    model.generation_config.temperature = 0.9
    save_auxiliary_files(model, tokenizer, tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.temperature, saved.do_sample) == (0.9, True)


def test_answers_beyond_the_positions_are_refused_where_they_are_made_too(tiny_model):
    model, tokenizer = load_model(str(tiny_model), None, "fp32", "cpu")
    settings = Evaluation(max_prompt_tokens=4000, max_new_tokens=97)
    with pytest.raises(UserError, match="together more than the 4096 positions"):
        generate_answers(model, tokenizer, [], settings)


def test_other_files_of_the_base_go_along_with_a_policy(tiny_model, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "LICENSE").write_text("ours")
    (base / "extra").mkdir()
    (base / "extra" / "processor.json").write_text("{}")
    (base / "optimizer.pt").write_bytes(b"not ours")
    model, tokenizer = load_model(str(base), None, "fp32", "cpu")
    save_auxiliary_files(model, tokenizer, tmp_path / "policy")
    policy = tmp_path / "policy"
    assert (policy / "LICENSE").read_text() == "ours"
    assert (policy / "extra" / "processor.json").read_text() == "{}"
    assert not (policy / "optimizer.pt").exists()
    assert not list(policy.glob("*.safetensors"))
