"""Texts for reward models: each token once, the response whole, one end of the prompt cut."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vcsoup_dist.errors import UserError
from vcsoup_dist.scoring.texts import RewardText, cut, encode_text, prompt_text

WORDS = [f"w{i}" for i in range(40)]
SPECIALS = ["<s>", "</s>", "[CLS]", "[SEP]", "Human:", "Assistant:"]
FORMS = ["chat_template", "pair", "response", "Human: {prompt} Assistant: {response} </s>"]
PROMPT = [
    {"role": "user", "content": "w1 w2 w3"},
    {"role": "assistant", "content": "w4"},
    {"role": "user", "content": "w5 w6"},
]


def tokenizer_with(single: str, pair: str, **names) -> PreTrainedTokenizerFast:
    """Words as tokens; `single` and `pair` say which special tokens it adds by itself."""
    vocabulary = {word: i for i, word in enumerate([*SPECIALS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(s, vocabulary[s]) for s in SPECIALS]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = (
        "{{ bos_token }} {% for m in messages %}"
        "{{ m['role'] == 'user' and 'Human:' or 'Assistant:' }} {{ m['content'] }} </s> "
        "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
    )
    return fast


def bos_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_with("<s> $A", "<s> $A $B", bos_token="<s>", eos_token="</s>")


def bert_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_with(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", cls_token="[CLS]", sep_token="[SEP]",
        bos_token="[CLS]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def words_of(tokenizer, text: RewardText) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(text.ids))


def test_each_form_lays_out_prompt_and_response_as_it_says():
    tokenizer = bos_tokenizer()
    written = {
        form: words_of(tokenizer, encode_text(tokenizer, form, PROMPT, "w7 w8", None))
        for form in FORMS
    }
    dialogue = "w1 w2 w3 Assistant: w4 Human: w5 w6"
    ended = "w1 w2 w3 </s> Assistant: w4 </s> Human: w5 w6 </s>"
    assert written == {
        "chat_template": f"<s> Human: {ended} Assistant: w7 w8 </s>",
        "pair": f"<s> {dialogue} w7 w8",
        "response": "<s> w7 w8",
        FORMS[3]: f"<s> Human: {dialogue} Assistant: w7 w8 </s>",
    }


def test_a_pair_for_an_encoder_has_its_separators_and_segment_ids():
    tokenizer = bert_tokenizer()
    text = encode_text(tokenizer, "pair", PROMPT[:1], "w7 w8", None)
    assert words_of(tokenizer, text) == "[CLS] w1 w2 w3 [SEP] w7 w8 [SEP]"
    assert text.types == [0] * 5 + [1] * 3


@pytest.mark.parametrize("form", FORMS)
def test_no_bos_is_doubled_even_where_a_template_brings_its_own(form):
    tokenizer = bos_tokenizer()
    form = f"<s> {form}" if "{" in form else form
    ids = encode_text(tokenizer, form, PROMPT, "w7", None).ids
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("tokenizer", [bos_tokenizer(), bert_tokenizer()], ids=["bos", "bert"])
@pytest.mark.parametrize("form", FORMS)
@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(8, 40), st.sampled_from(["start", "end"])
)
def test_truncation_keeps_the_response_and_cuts_one_end_of_the_prompt(
    tokenizer, form, prompt_words, response_words, max_length, truncate
):
    draw = random.Random(prompt_words * 100 + response_words)
    question, answer = (draw.choices(WORDS, k=n) for n in (prompt_words, response_words))
    prompt = [{"role": "user", "content": " ".join(question)}]
    whole = encode_text(tokenizer, form, prompt, " ".join(answer), None)
    text = encode_text(tokenizer, form, prompt, " ".join(answer), max_length, truncate)
    assert len(text.ids) == min(len(whole.ids), max_length)
    assert text.truncated == (len(whole.ids) > max_length)
    assert text.types is None or len(text.types) == len(text.ids)
    tokens = tokenizer.convert_ids_to_tokens(text.ids)
    kept = [token for token in tokens if token in WORDS]
    asked = [] if form == "response" else question
    of_prompt = max(0, len(kept) - len(answer))
    start = 0 if truncate == "end" else len(asked) - of_prompt
    assert kept == (asked[start : start + of_prompt] + answer)[-len(kept) :]
    assert text.response_truncated == (len(kept) < len(answer))
    marks, all_marks = (
        [token for token in some if token not in WORDS]
        for some in (tokens, tokenizer.convert_ids_to_tokens(whole.ids))
    )
    if form == "chat_template":  # there, the mark before the prompt counts as its own
        marks, all_marks = ([m for m in some if m != "Human:"] for some in (marks, all_marks))
    assert marks == all_marks


def test_more_markers_than_room_leave_the_end():
    text = cut(RewardText(list(range(20)), range(5, 7), range(10, 12)), 8)
    assert text.ids == list(range(12, 20)) and text.response_truncated


def test_slots_inside_the_texts_are_left_as_they_are():
    tokenizer = bos_tokenizer()
    prompt = [{"role": "user", "content": "{response}"}]
    text = encode_text(tokenizer, "{prompt} Assistant: {response}", prompt, "{prompt}", None)
    assert len(text.ids) == 4 and len(text.prompt) == len(text.response) == 1


def test_a_prompt_of_one_turn_is_its_own_text():
    assert prompt_text(PROMPT[:1]) == "w1 w2 w3"
    assert prompt_text(PROMPT) == "w1 w2 w3\n\nAssistant: w4\n\nHuman: w5 w6"
    assert prompt_text([{"role": "system", "content": "s"}, *PROMPT[:1]]) == (
        "\n\nSystem: s\n\nHuman: w1 w2 w3"
    )


def test_a_chat_template_that_refuses_a_prompt_is_named():
    tokenizer = bos_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(UserError, match="no system role"):
        encode_text(tokenizer, "chat_template", PROMPT, "w7", None)
