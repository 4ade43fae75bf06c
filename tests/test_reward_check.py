"""`vcsoup reward-check` says how a reward is read, and finds what is often wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from conftest import WORDS, save_tiny_tokenizer, write_pairs
from tokenizers import Tokenizer, models, pre_tokenizers

from vcsoup_dist.check.rewards import check_rewards
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.plan.products import make_plan
from vcsoup_dist.recipe_file import load_recipe
from vcsoup_dist.scoring.reward_findings import ANSWER, TURNS

CHAT = "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + ' ' }}{% endfor %}"
SPECIALS = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<unk>", "<s>"]
VOCABULARY = [*SPECIALS, *WORDS, *TURNS, *ANSWER, "on", "so"]


def save_classifier(
    folder: Path, template: str = CHAT, pad: str | None = "<|pad|>", spread: float = 0.5
) -> str:
    """A random Llama classifier of two outputs; `spread`: how much its texts differ in score."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token="<|end|>", unk_token="<unk>",
        bos_token="<s>",
    )  # fmt: skip
    fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_labels=2, initializer_range=spread, pad_token_id=None,
    )  # fmt: skip
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


def check(folder: Path, **rewards: dict) -> None:
    write_pairs(folder / "pairs.jsonl", 4)
    save_tiny_tokenizer(folder / "base")
    transformers.LlamaConfig().save_pretrained(folder / "base")
    values = {name: {"reward": reward} for name, reward in rewards.items()}
    next(iter(values.values()))["data"] = {"path": "pairs.jsonl"}
    recipe = {"name": "test", "model": "base", "values": values}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    loaded = load_recipe(folder / "recipe.yaml")
    check_rewards(loaded, make_plan(loaded, Hashes(folder / "hashes.json")))


def test_values_of_one_model_are_shown_together_with_the_example_and_its_rewards(tmp_path, capsys):
    model = save_classifier(tmp_path / "model")
    cost = {"classifier": model, "output": 1, "sign": -1}
    check(tmp_path, good={"classifier": model}, cheap=cost)
    shown = capsys.readouterr().out
    assert "good, cheap" in shown and "nothing looks wrong" in shown
    assert "output 0 (LABEL_0) of 2" in shown and "output 1 (LABEL_1) of 2, lower" in shown
    assert "<|user|>" in shown and "packed" in shown
    assert "good: chosen" in shown and "cheap: chosen" in shown


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ({"pad": "<|end|>"}, {}, "note .*pad token is its end token"),
        ({"pad": None}, {}, "note .*no pad token"),
        ({"template": "{{ '<s> <s> ' }}" + CHAT}, {}, "wrong .*begin with <s> twice"),
        (
            {
                "template": CHAT.replace(
                    "{{", "{% if messages|length < 3 or not loop.first %}{{", 1
                ).replace("}}", "}}{% endif %}", 1)
            },
            {},
            "wrong .*loses the first question of",
        ),
        (
            {"template": CHAT.replace("m['content']", "m['content'][:100]")},
            {},
            "wrong .*loses the response's end of",
        ),
        ({"spread": 1e-9}, {}, "wrong .*reward of good is the same after another prompt"),
        ({}, {"output": 7}, "wrong .*values.good: no output 7"),
        ({}, {"max_length": 8}, "note .*response alone is longer than 8 tokens"),
    ],
)
def test_what_is_often_wrong_is_found(tmp_path, capsys, model, settings, message):
    reward = {"classifier": save_classifier(tmp_path / "model", **model), **settings}
    if message.startswith("wrong"):
        with pytest.raises(UserError, match="1 of the rewards above would give wrong scores"):
            check(tmp_path, good=reward)
    else:
        check(tmp_path, good=reward)
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(message, shown), shown


def test_a_function_that_gives_both_answers_the_same_reward_is_noted(tmp_path, capsys):
    (tmp_path / "rewards.py").write_text("def one(prompt, response):\n    return 1")
    check(tmp_path, same={"callable": "rewards.py:one"})
    shown = " ".join(capsys.readouterr().out.split())
    assert "note the reward of same is the same for both answers" in shown


def test_a_reward_of_the_response_alone_is_not_blamed_for_ignoring_the_prompt(tmp_path, capsys):
    reward = {"classifier": save_classifier(tmp_path / "model"), "text": "response"}
    check(tmp_path, good=reward)
    assert "nothing looks wrong" in capsys.readouterr().out


def test_a_fresh_head_does_not_hide_what_is_said_of_the_other_rewards(tmp_path, capsys):
    fresh = tmp_path / "fresh"
    save_classifier(fresh)
    config = transformers.AutoConfig.from_pretrained(fresh)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(fresh)
    (tmp_path / "rewards.py").write_text("def short(prompt, response):\n    return -len(response)")
    with pytest.raises(UserError, match="1 of the rewards"):
        check(tmp_path, good={"classifier": str(fresh)}, short={"callable": "rewards.py:short"})
    shown = " ".join(capsys.readouterr().out.split())
    assert "its files lack score.weight" in shown and "short: chosen" in shown


def test_the_command_ends_with_2_where_a_reward_is_wrong(tmp_path):
    (tmp_path / "rewards.py").write_text("def nothing(prompt, response):\n    return None")
    with pytest.raises(UserError):
        check(tmp_path, good={"callable": "rewards.py:nothing"})
    command = [sys.executable, "-m", "vcsoup_dist.cli", "reward-check", tmp_path / "recipe.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "no reward" in done.stdout and "vcsoup: 1 of" in done.stderr
