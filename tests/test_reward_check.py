"""`vcsoup reward-check` says how a reward is read, and finds what is often wrong."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from command import run_vcsoup
from conftest import WORDS, save_tiny_tokenizer, write_pairs
from tokenizers import Tokenizer, models, pre_tokenizers

from vcsoup_dist.check.rewards import check_rewards
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.scoring.reward_findings import ANSWER, TURNS
from vcsoup_dist.scoring.reward_sample import sample_findings, take_sample
from vcsoup_dist.scoring.rewards import Scored

pytestmark = pytest.mark.models

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


def check(folder: Path, pairs: int = 4, end: str = "", **rewards: dict) -> None:
    """`pairs`: more than 4 have chosen answers that are good; `end`: of all answers."""
    write_pairs(folder / "pairs.jsonl", pairs)
    if pairs > 4:
        rows = [json.loads(row) for row in (folder / "pairs.jsonl").read_text().splitlines()]
        for row in rows:
            row["chosen"] = f"good {row['chosen']} {end}"
            row["rejected"] = f"{row['rejected']} {end}"
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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
    check(tmp_path, good={"classifier": model, "output": 0}, cheap=cost)
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


FUNCTIONS = """
import itertools, random
COUNT = itertools.count()

def one(prompt, response):
    return 1

def nearly_one(prompt, response):
    return 1 + 1e-9 * len(response)

def fickle(prompt, response):
    return random.random()

def tied(prompt, response):
    return prompt[-1]["content"].count("cat")

def length(prompt, response):
    return len(response)

def cost(prompt, response):
    return "good" not in response

def fails_once(prompt, response):
    if next(COUNT) == 3:
        raise KeyboardInterrupt
    return len(response) + hash(response) % 7
"""


@pytest.mark.parametrize(
    ("function", "grave", "message"),
    [
        ("one", True, "wrong same gives every answer the same reward"),
        ("nearly_one", True, "wrong same gives every answer the same reward"),
        ("fickle", True, r"wrong same gives the same text 0\.\d+, and asked again 0\.\d+"),
        ("tied", False, "note the reward of same is the same for both answers in 60 of 60 pairs"),
        ("length", False, r"note the reward of same goes by length \(correlation \+1.00\): longer"),
        ("cost", False, "note same prefers the chosen answer in 0 of 60 pairs only: a cost needs"),
        ("fails_once", True, "fails_once: KeyboardInterrupt"),
    ],
)
def test_what_a_function_does_with_sixty_pairs_is_told(tmp_path, capsys, function, grave, message):
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    reward = {"callable": f"rewards.py:{function}"}
    with pytest.raises(UserError) if grave else contextlib.nullcontext():
        check(tmp_path, 70, same=reward)
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(message, shown), shown
    assert "pairs looked at 60" in shown


def test_answers_that_a_template_drops_and_that_become_equal_are_wrong(tmp_path, capsys):
    template = CHAT.replace("m['content']", "m['content'].split('good')[-1]")
    reward = {"classifier": save_classifier(tmp_path / "model", template=template)}
    with pytest.raises(UserError):
        check(tmp_path, 30, good=reward)
    shown = " ".join(capsys.readouterr().out.split())
    assert "wrong no reward of 30 of 30 pairs by good: the template drops part" in shown
    assert "answers partly dropped 30" in shown
    reward = {"classifier": save_classifier(tmp_path / "model"), "max_length": 8}
    (tmp_path / "alike").mkdir()
    with pytest.raises(UserError):
        check(tmp_path / "alike", 30, "big old red new cat dog tree or and", good=reward)
    shown = " ".join(capsys.readouterr().out.split())
    assert "the two answers of 30 of 30 pairs are the same tokens" in shown


def test_a_reward_of_the_response_alone_is_not_blamed_for_ignoring_the_prompt(tmp_path, capsys):
    reward = {"classifier": save_classifier(tmp_path / "model"), "text": "response", "output": 0}
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


@pytest.mark.processes
def test_the_command_ends_with_2_where_a_reward_is_wrong(tmp_path):
    (tmp_path / "rewards.py").write_text("def nothing(prompt, response):\n    return None")
    with pytest.raises(UserError):
        check(tmp_path, good={"callable": "rewards.py:nothing"})
    done = run_vcsoup("reward-check", "recipe.yaml", folder=tmp_path)
    assert done.returncode == 2 and "no reward" in done.stdout and "vcsoup: 1 of" in done.stderr


def test_the_figures_are_those_of_a_plain_computation_pair_by_pair():
    rng = np.random.default_rng(0)
    pairs = [
        Pair(f"{i}", [{"role": "user", "content": "q"}], "a" * int(c), "b" * int(r), {})
        for i, (c, r) in enumerate(rng.integers(1, 90, (60, 2)))
    ]
    rewards = rng.normal(size=(120, 2))
    rewards[6] = rewards[7]  # a tie
    rewards[20, 1] = np.nan
    scored = Scored(rewards, {20: "boom"}, truncated=5, dropped=frozenset({31}))
    sample = take_sample(pairs, scored, rewards[:10], 1)
    kept = [i for i in range(60) if i not in (10, 15)]
    right = sum(rewards[2 * i, 1] > rewards[2 * i + 1, 1] for i in kept)
    x = [rewards[2 * i + side, 1] for i in kept for side in (0, 1)]
    y = [len(text) for i in kept for text in (pairs[i].chosen, pairs[i].rejected)]
    assert (sample.scored, sample.ties, sample.right) == (58, 1, right)
    assert sample.length == pytest.approx(statistics.correlation(x, y))
    assert sample.rows()["agrees with the labels"] == f"{100 * right / 57:.0f} %"
    assert (sample.cut, sample.dropped, sample.reason) == (5, 1, "boom")
    assert not sample.constant and sample.fickle is None
    moved = take_sample(pairs, scored, rewards[:10] + 0.1, 1)
    assert moved.fickle == (rewards[0, 1], rewards[0, 1] + 0.1)


def test_a_cost_that_has_its_sign_already_is_not_told_to_give_it():
    sample = take_sample(
        [Pair(f"{i}", [{"role": "user", "content": "q"}], "a", "bc", {}) for i in range(30)],
        Scored(np.array([[i % 2 + i / 99] for i in range(60)])),
        np.empty((0, 1)),
        0,
    )
    with_sign = [each.text for each in sample_findings(sample, "v", 0.0, -1)]
    without = [each.text for each in sample_findings(sample, "v", 0.0)]
    assert "a cost needs `sign: -1`" in without[0] and "a cost needs" not in with_sign[0]
    assert "is it a cost, as `sign: -1` says" in with_sign[0]


def test_a_reward_that_sees_no_answer_whole_is_not_called_fickle(tmp_path, capsys):
    template = CHAT.replace("m['content']", "m['content'][1:]")
    reward = {"classifier": save_classifier(tmp_path / "model", template=template)}
    with pytest.raises(UserError):
        check(tmp_path, good=reward)
    shown = " ".join(capsys.readouterr().out.split())
    assert "the template drops part" in shown and "asked again yes" in shown
