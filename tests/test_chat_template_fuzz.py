"""Chat templates of any kind, through the encoders of rewards and of policies.

None costs a traceback or more than seconds, and none that loses text passes for one that keeps it.
"""

from __future__ import annotations

import copy
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_scoring_texts import bos_tokenizer

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answer_text import kept_answer
from vcsoup_dist.forward.template import (
    RefusedByTemplate,
    choose_template,
    encode_pair,
    encode_prompt,
)
from vcsoup_dist.forward.template_limits import comes_to_an_end
from vcsoup_dist.scoring.texts import encode_text

pytestmark = [pytest.mark.models, pytest.mark.processes]

TOKENIZER = bos_tokenizer()
PROMPT = [{"role": "user", "content": "w1 w2 w3"}]
ANSWER, OTHER = "w7 w8 w9", "w10 w11 w12"
SECONDS = 10.0

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<s> w39 ' }}{% endif %}{{ 'Human: ' if message['role'] == 'user' else 'Assistant: ' }}"
    "{{ message['content'] | trim }} </s> {% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
REASONING = (
    "{%- set ns = namespace(last=messages|length - 1) -%}{{ bos_token }} "
    "{%- for m in messages -%}{%- if m.role == 'assistant' and 'w8' in m.content -%}"
    "{% set parts = m.content.split('w8') %} Assistant: {{ parts[-1] }}"
    "{%- else %} Human: {{ m.content }}{% endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt %} Assistant: {% endif -%}"
)
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ bos_token }} {% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ ' Human: ' + m['content'] if m['role'] == 'user' else ' Assistant: ' + m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %} Assistant: {% endif %}"
)
REAL = [CHATML, REASONING, STRICT]
PIECES = [
    *("{% for m in messages %}", "{% endfor %}", "{% if add_generation_prompt %}", "{% endif %}"),
    *("{% if m.role == 'user' %}", "{% else %}", "{{ m.content }}", "{{ m['content'] | trim }}"),
    *("{{ m.content[:5] }}", "{{ m.content.split('w8')[-1] }}", "{{ messages[0].content }}"),
    *("{{ messages[-1]['content'] }}", "{{ bos_token }} ", " Human: ", " Assistant: ", " </s> "),
    *("{{ nothing.of.this }}", "{{ 1 / 0 }}", "{{ m.content + 1 }}", "{{ messages | tojson }}"),
    *("{{ raise_exception('no') }}", "{% set x = m.content %}", "{{ x }}", "{{ x | upper }}"),
    *("{% macro f(a) %}{{ a }}{% endmacro %}", "{{ f(m.content) }}", "{{ f(f) }}", "{% break %}"),
    *("{% for i in range(10**12) %}x{% endfor %}", "{{ ''.__class__ }}", "{% generation %}"),
    *("{% endgeneration %}", "{{ strftime_now('%Y') }}", "{{ date_string }}", "{% include 'a' %}"),
    *("{{ m.content | replace('w8', '') }}", "{{ (messages | first).content[::-1] }}", "{#", "}}"),
    *(
        "{% set ns = namespace(x='') %}",
        "{% set ns.x = ns.x ~ m.content %}",
        "{{ ns.x }}",
        "\ud83d",
    ),
]
WHOLE = "{% for m in messages %}{{ bos_token }} "


def processor_seconds() -> float:
    """Of this process and those that it has started: not of the machine's other work."""
    return sum(os.times()[:4])


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A real template with some stretches left out, doubled or exchanged for other pieces."""
    template = draw(st.sampled_from(REAL))
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(0, len(template)))
        last = draw(st.integers(first, min(len(template), first + 25)))
        middle = draw(st.sampled_from(["", template[first:last] * 2, *PIECES]))
        template = template[:first] + middle + template[last:]
    return template


TEMPLATES = st.one_of(
    mutated(),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=4).map(
        lambda pieces: WHOLE + "".join(pieces) + "{% endfor %}"
    ),
)


def with_template(template: object) -> object:
    tokenizer = copy.copy(TOKENIZER)
    tokenizer.chat_template = template
    return tokenizer


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEMPLATES)
def test_any_template_ends_soon_in_tokens_or_in_one_line(template):
    tokenizer = with_template(template)
    began = processor_seconds()
    try:
        text = encode_text(tokenizer, "chat_template", PROMPT, ANSWER, None)
    except UserError as error:
        assert str(error).encode() and "\n" not in str(error)
    else:
        answer = " ".join(tokenizer.convert_ids_to_tokens(list(text.ids[text.response.start :])))
        assert text.dropped == (ANSWER not in answer)
    try:
        pair = encode_pair(tokenizer, PROMPT, ANSWER, OTHER, 64, truncate_prompt=False)
    except UserError as error:
        assert str(error).encode() and "\n" not in str(error)
    else:
        assert isinstance(pair, (tuple, str))
    assert processor_seconds() - began < SECONDS


@pytest.mark.parametrize(
    "piece",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10**(10**10) }}",
        "{{ 'x' * 10**10 }}",
        "{{ 'x' | center(10**11) }}",
        "{% set ns = namespace(s='x') %}"
        "{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        *["{% set x = 'xx' %}" + "{% set x = x ~ x %}" * 60],
    ],
)
def test_a_template_without_an_end_is_one_line_in_seconds(piece):
    began = processor_seconds()
    for encode in (
        lambda each: encode_text(each, "chat_template", PROMPT, ANSWER, None),
        lambda each: encode_pair(each, PROMPT, ANSWER, OTHER, 64, truncate_prompt=False),
    ):
        with pytest.raises(UserError, match="never ends"):
            encode(with_template(piece + CHATML))
    assert processor_seconds() - began < SECONDS  # tried once, for both


@pytest.mark.parametrize("template", [*REAL, "{{ messages[0]['content'] }}"])
def test_real_templates_come_to_an_end(template):
    assert comes_to_an_end(template)


def test_one_prompt_that_a_template_cannot_take_is_one_bad_row():
    tokenizer = with_template(
        "{{ 1 + messages[0]['content'] | int(0) / 0 }}".join(["", ""]) + CHATML
    )
    tokenizer.chat_template = (
        "{% if messages[0]['content'] == 'w5' %}{{ 1 + 'a' }}{% endif %}" + CHATML
    )
    bad = [{"role": "user", "content": "w5"}]
    with pytest.raises(RefusedByTemplate, match="refuses a prompt: TypeError"):
        encode_text(tokenizer, "chat_template", bad, ANSWER, None)
    with pytest.raises(RefusedByTemplate, match="refuses a prompt: TypeError"):
        encode_pair(tokenizer, bad, ANSWER, OTHER, 64, False)
    assert not encode_text(tokenizer, "chat_template", PROMPT, ANSWER, None).dropped


def test_several_named_templates_are_listed_with_the_key_to_choose_one():
    named = {"rag": STRICT, "tool_use": CHATML}
    with pytest.raises(UserError, match="none called `default`: rag, tool_use; choose"):
        encode_prompt(with_template(named), PROMPT)
    tokenizer = with_template(named)
    with pytest.raises(UserError, match=r"`training.x`: no chat template `chat`; .* rag, tool_use"):
        choose_template(tokenizer, "chat", "training.x")
    choose_template(tokenizer, "rag", "template")
    assert tokenizer.chat_template == STRICT
    assert encode_prompt(with_template({"default": STRICT, "rag": CHATML}), PROMPT) == (
        encode_prompt(with_template(STRICT), PROMPT)
    )
    with pytest.raises(UserError, match="leave out `template`"):
        choose_template(with_template(STRICT), "rag", "template")


def test_text_that_a_reasoning_template_cuts_is_known_to_be_dropped():
    tokenizer = with_template(REASONING)
    assert encode_text(tokenizer, "chat_template", PROMPT, ANSWER, None).dropped
    text = encode_text(tokenizer, "chat_template", PROMPT, OTHER, None)
    assert not text.dropped and kept_answer(tokenizer, text.ids, text.response.start, OTHER)
