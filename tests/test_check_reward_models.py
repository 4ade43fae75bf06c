"""`vcsoup check` says of a reward model's folder what scoring would say, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import write_model_files, write_pairs
from safetensors.torch import load_file, save_file
from test_scoring_loading import edit_config, save

from vcsoup_dist.check.reward_models import check_reward_models
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe.load import load_recipe

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"


def check(
    folder: Path, stages: tuple[str, ...] = ("score", "evaluate"), **rewards: dict
) -> list[str]:
    value = {"data": {"path": "pairs.jsonl"}, **rewards}
    (folder / "r.yaml").write_text(
        yaml.safe_dump({"name": "x", "model": "base", "values": {"v": value}})
    )
    recipe = load_recipe(folder / "r.yaml")
    plan = make_plan(recipe, Hashes(folder / "hashes.json"))
    return check_reward_models(recipe, plan, [each for each in plan if each.stage in stages])


@pytest.fixture
def folder(tmp_path) -> Path:
    write_model_files(tmp_path / "base")
    save(tmp_path / "reward")
    save(tmp_path / "bad")
    write_pairs(tmp_path / "pairs.jsonl", 4)
    return tmp_path


def pointer(bad: Path) -> None:
    (bad / "model.safetensors").write_text(POINTER)


def half(bad: Path) -> None:
    content = (bad / "model.safetensors").read_bytes()
    (bad / "model.safetensors").write_bytes(content[: len(content) // 2])


def no_weights(bad: Path) -> None:
    (bad / "model.safetensors").unlink()


def adapter_beside(bad: Path) -> None:
    (bad / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (bad / "adapter_model.safetensors").write_bytes(b"x")


def adapter(bad: Path) -> None:
    (bad / "model.safetensors").unlink()
    (bad / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "SEQ_CLS"}')


def gguf(bad: Path) -> None:
    (bad / "model.safetensors").rename(bad / "model.gguf")
    (bad / "model.gguf").write_bytes(b"GGUF")


def without(bad: Path, *ends: str) -> None:
    tensors = load_file(bad / "model.safetensors")
    kept = {name: each for name, each in tensors.items() if not name.endswith(ends)}
    save_file(kept, bad / "model.safetensors", metadata={"format": "pt"})


def no_norm(bad: Path) -> None:
    without(bad, "layers.1.input_layernorm.weight")


def no_head(bad: Path) -> None:
    without(bad, "score.weight")


def other_head(bad: Path) -> None:
    edit_config(save(bad, labels=3), id2label={"0": "a"}, label2id={"a": 0})


def one_layer_less(bad: Path) -> None:
    edit_config(bad, num_hidden_layers=1)


def cutting_template(bad: Path) -> None:
    template = bad / "chat_template.jinja"
    template.write_text(template.read_text().replace("m['content']", "m['content'][:2]"))


def broken_template(bad: Path) -> None:
    (bad / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pointer, "Git LFS pointer"),
        (half, "truncated"),
        (no_weights, "holds a config or tokenizer, but neither"),
        (adapter_beside, "a LoRA adapter"),
        (adapter, "merge it .*AutoPeftModelForSequenceClassification"),
        (gguf, "GGUF"),
        (no_norm, "lack .*layers.1.input_layernorm.weight"),
        (no_head, "lack score.weight"),
        (other_head, r"score.weight of the shape \[3, 16\], .* for \[1, 16\]"),
        (one_layer_less, "for which its config has no place"),
        (cutting_template, "none of the first answers can be scored; .* drops part of the answer"),
        (broken_template, "none of the first answers can be scored; "),
    ],
)
def test_a_folder_that_is_no_reward_model_is_refused_under_its_key(folder, spoil, message):
    spoil(folder / "bad")
    good, bad = {"classifier": "reward"}, {"classifier": "bad"}
    check(folder, reward=good)
    for key, rewards in (
        ("reward", {"reward": bad}),
        ("judge", {"reward": good, "judge": bad}),
    ):
        with pytest.raises(UserError, match=rf"^values\.v\.{key}\.classifier: .*{message}"):
            check(folder, **rewards)


def test_an_answer_that_the_template_cuts_is_warned_of(folder):
    template = folder / "reward" / "chat_template.jinja"
    cut = "(m['content'] if loop.index != 2 or 'a' in m['content'] else '')"
    template.write_text(template.read_text().replace("m['content']", cut))
    rows = [
        {"prompt": "the cat", "chosen": "a dog", "rejected": "the dog"},
        {"prompt": "the tree", "chosen": "a cat", "rejected": "a dog"},
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (warning,) = check(folder, reward={"classifier": "reward"})
    assert "1 of the first 4 answers cannot be scored; pair " in warning


def test_a_model_that_nothing_loads_any_more_may_be_gone_bad(folder):
    no_weights(folder / "bad")
    check(folder, ("train",), reward={"classifier": "bad"})
    check(folder, ("score",), reward={"classifier": "reward"}, judge={"classifier": "bad"})
