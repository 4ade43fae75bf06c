"""Real pairs under the chat template: what it refuses, cuts or changes costs that pair alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import save_tiny_model, write_pairs
from test_cli import RECIPE, vcsoup
from transformers import AutoTokenizer

from vcsoup_dist.errors import UserError
from vcsoup_dist.evaluation.generate import generate_answers, load_model
from vcsoup_dist.evaluation.prompts import Prompt
from vcsoup_dist.forward.template import Unusable
from vcsoup_dist.recipe import Evaluation, Training
from vcsoup_dist.tokens.pair_tokens import pair_in_tokens
from vcsoup_dist.training.base_checks.check import check_base
from vcsoup_dist.training.base_checks.first_pairs import Texts, check_template, first_texts

TRAINING = Training(max_length=64)
EVALUATION = Evaluation(max_prompt_tokens=32, max_new_tokens=8, temperature=0, dtype="fp32")
TURNS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + ' <|end|> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)
THINKING = TURNS.replace("+ m['content']", "+ m['content'].split('</think>')[-1]")
ODD = "{% if messages[0]['content'] == 'the dog' %}{{ 1 + 'a' }}{% endif %}" + TURNS


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def texts(prompt="the cat", chosen="yes", rejected="no", id_="a") -> Texts:
    return Texts(id_, user(prompt), chosen, rejected)


@pytest.fixture
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


BROKEN = {
    "a syntax error": ("{% for m in messages %}", "TemplateSyntaxError"),
    "no BOS": ("{{ bos_token + messages[0]['content'] }}", "UndefinedError|TypeError"),
    "refused": ("{{ raise_exception('not for you') }}", "TemplateError: not for you"),
    "a type error": ("{{ 1 + 'a' }}" + TURNS, "TypeError"),
    "no tokens": ("{% if false %}{% endif %}", "makes no tokens of a prompt"),
    "not a prefix": ("{{ 'a ' * messages|length }}" + TURNS, "not prefix-stable"),
    "no answer": ("{{ '<|user|> ' + messages[0]['content'] }}", "."),
}


@pytest.mark.processes
@pytest.mark.parametrize("template, reason", BROKEN.values(), ids=BROKEN.keys())
def test_a_template_that_takes_no_pair_is_refused_with_its_own_reason(tokenizer, template, reason):
    tokenizer.chat_template = template
    pairs = [texts(id_="first"), texts("the dog")]
    if reason == ".":  # two answers of no token are no pair, whoever's fault that is
        found = pair_in_tokens(tokenizer, *pairs[0][1:], TRAINING)
        assert found.pair is Unusable.EMPTY
        return
    with pytest.raises(UserError, match="none of its first 2 pairs.* pair first: ") as found:
        check_template(tokenizer, "helpful", pairs, TRAINING)
    assert any(each in str(found.value) for each in reason.split("|"))


ODD_PAIRS = {
    "cut": (THINKING, texts(chosen="no </think> yes", id_="odd"), Unusable.CUT, "drops part of"),
    "raises": (ODD, texts("the dog", id_="odd"), Unusable.REFUSED, "TypeError"),
    "worded otherwise": (
        TURNS.replace("{{ '<|assistant|> ' }}", "{{ '<|assistant|> old ' }}").replace(
            "'|> ' +", "'|> ' + ('old ' if m['content'] != 'big' else 'new ') +"
        ),
        texts(chosen="big", id_="odd"),
        Unusable.REFUSED,
        "not prefix-stable",
    ),
}


@pytest.mark.parametrize("template, odd, kind, reason", ODD_PAIRS.values(), ids=ODD_PAIRS.keys())
def test_one_odd_pair_is_named_and_costs_itself_alone(tokenizer, template, odd, kind, reason):
    tokenizer.chat_template = template
    found = pair_in_tokens(tokenizer, *odd[1:], TRAINING)
    assert found.pair is kind and reason in str(found.reason)
    (warning,) = check_template(tokenizer, "helpful", [texts(), odd, texts()], TRAINING)
    assert warning.startswith("helpful: 1 of its first 3 pairs will be left out; pair odd: ")
    assert reason in warning


def test_a_template_that_drops_the_system_turn_is_warned_of(tokenizer):
    tokenizer.chat_template = TURNS.replace("%}{{ '<|'", "%}{% if m['role'] != 'system' %}{{ '<|'")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "'{% endfor %}", "'{% endif %}{% endfor %}"
    ).replace("}}{% endfor %}", "}}{% endif %}{% endfor %}")
    system = [{"role": "system", "content": "big old house"}, *user("the cat")]
    (warning,) = check_template(tokenizer, "helpful", [Texts("a", system, "yes", "no")], TRAINING)
    assert "leaves out or changes the system turn of pair a's prompt" in warning
    assert check_template(tokenizer, "helpful", [texts()], TRAINING) == []


@pytest.mark.models
def test_a_tokenizer_without_one_template_is_refused_before_any_pair(tiny_model, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = {"tools": TURNS, "plain": TURNS}
    tokenizer.save_pretrained(base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match="none called `default`: plain, tools; give the model dir"):
        check_base(str(base), None, TRAINING, EVALUATION)
    shutil.rmtree(base / "additional_chat_templates", ignore_errors=True)
    (base / "chat_template.jinja").write_text(" ")
    with pytest.raises(UserError, match="chat template is empty"):
        check_base(str(base), None, TRAINING, EVALUATION)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        check_base(str(base), None, TRAINING, EVALUATION)


def test_the_first_pairs_are_those_of_the_first_file_that_has_any(tmp_path):
    rows = [texts(id_=f"{i:02d}")._asdict() for i in range(20)]
    whole = pa.Table.from_pylist(rows)
    pq.write_table(whole.slice(0, 0), tmp_path / "train-00000.parquet")
    pq.write_table(whole, tmp_path / "train-00001.parquet")
    assert [each.id for each in first_texts(tmp_path)] == [f"{i:02d}" for i in range(8)]


@pytest.mark.models
def test_a_prompt_that_the_template_does_not_take_gets_no_answer(tiny_model):
    model, tokenizer = load_model(str(tiny_model), None, "fp32", "cpu")
    tokenizer.chat_template = ODD
    prompts = [Prompt(each, "d", user(each)) for each in ("the cat", "the dog", "the house")]
    answered = generate_answers(model, tokenizer, prompts, EVALUATION)
    assert [each.prompt.id for each in answered] == ["the cat", "the house"]
    with pytest.raises(UserError, match="refuses a prompt: TypeError"):
        generate_answers(model, tokenizer, prompts[1:2], EVALUATION)


@pytest.mark.models
@pytest.mark.processes
def test_check_tries_real_pairs_of_every_dataset(tmp_path):
    save_tiny_model(tmp_path / "base")
    write_pairs(tmp_path / "pairs.jsonl", 20)
    (tmp_path / "rewards.py").write_text("def longer(prompt, response):\n    return 0.0\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    template: Path = tmp_path / "base" / "chat_template.jinja"
    template.write_text("{{ raise_exception('not for you') }}")
    printed = vcsoup("check", "recipe.yaml", folder=tmp_path, code=2)
    assert "long: none of its first 8 pairs can be trained on; pair " in printed
    assert "TemplateError: not for you" in printed and "Traceback" not in printed
    template.write_text(THINKING)
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"chosen": "no </think> yes"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    printed = vcsoup("check", "recipe.yaml", folder=tmp_path)
    assert "warning: long: 1 of its first 8 pairs will be left out; pair " in printed
