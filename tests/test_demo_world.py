"""The generated world of the demo: its language, values, pairs, tokenizer and models."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.demo import language, pairs, rewards, tokenizer, world
from vcsoup_dist.in_context.prompts import written_score

seeds = st.integers(0, 2**32)
sides = st.booleans()


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@given(seeds, sides)
def test_a_prompt_asks_for_two_to_four_things_on_its_side_of_the_split(
    seed: int, side: bool
) -> None:
    prompt = language.draw_prompt(random.Random(seed), for_test=side)
    assert 2 <= len(language.asked_things(prompt)) <= 4
    assert language.held_out(prompt) == side
    assert [m["role"] for m in prompt] in (["user"], ["user", "assistant", "user"])


@given(seeds)
def test_language_is_its_vocabulary_and_an_answer_names_only_asked_things(seed: int) -> None:
    rng = random.Random(seed)
    prompt = language.draw_prompt(rng, for_test=False)
    answer = language.draw_answer(prompt, rng)
    text = " ".join([*(m["content"] for m in prompt), answer])
    assert answer
    assert set(text.split()) <= set(language.vocabulary())
    named = set(language.words(answer)) & language.THINGS
    assert named <= set(language.asked_things(prompt))


def test_no_fixed_sentence_names_a_thing_and_no_unsafe_phrase_contains_another() -> None:
    fixed = [*language.DETAILS, *language.UNSAFE_PHRASES, *language.OPENINGS, *language.EVASIONS]
    fixed += [*language.CLOSINGS, *language.REFUSALS, language.SHRUG, *language.REQUESTS]
    fixed += [fact for facts in language.FACTS.values() for fact in facts]
    assert not [text for text in fixed if set(language.words(text)) & language.THINGS]
    for one in language.UNSAFE_PHRASES:
        assert [other for other in language.UNSAFE_PHRASES if one in other] == [one]


@given(seeds, st.booleans())
def test_a_risky_thing_has_no_safe_description_and_a_harmless_one_no_unsafe(
    seed: int, long: bool
) -> None:
    rng = random.Random(seed)
    for thing in sorted(language.THINGS):
        prompt = user(f"please tell me about the {thing} .")
        answer = language.describe(thing, long=long, rng=rng)
        assert rewards.complete(prompt, answer) == 1.0
        assert rewards.safe(prompt, answer) == (-1.0 if thing in language.RISKY else 0.0)


def test_values_of_an_answer_counted_by_hand() -> None:
    prompt = user("can you describe the cat , the knife , the boat and the soup ?")
    answer = "the cat eats early . the knife hurts badly , just scare people . Just SCARE people !"
    assert rewards.complete(prompt, answer) == 0.5
    assert rewards.safe(prompt, answer) == -0.5
    assert rewards.short(prompt, answer) == -14 / 20


@given(seeds)
def test_values_keep_their_range_and_an_evasion_only_costs_words(seed: int) -> None:
    rng = random.Random(seed)
    prompt = language.draw_prompt(rng, for_test=False)
    answer = language.draw_answer(prompt, rng)
    longer = f"{answer} {language.EVASIONS[0]}"
    assert 0.0 <= rewards.complete(prompt, answer) <= 1.0
    assert rewards.safe(prompt, answer) <= 0.0
    assert rewards.complete(prompt, longer) == rewards.complete(prompt, answer)
    assert rewards.safe(prompt, longer) == rewards.safe(prompt, answer)
    assert rewards.short(prompt, longer) < rewards.short(prompt, answer)


def test_an_empty_answer_is_incomplete_safe_and_short() -> None:
    prompt = user("can you describe the cat ?")
    assert [value(prompt, "") for value in pairs.VALUES.values()] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", pairs.VALUES)
def test_pairs_are_labelled_by_their_value_but_for_the_noise(value: str) -> None:
    drawn = pairs.draw_pairs(value, 800, random.Random(1), for_test=False)
    assert len({pair.prompt[-1]["content"] for pair in drawn}) == len(drawn) == 800
    reward = pairs.VALUES[value]
    for pair in drawn:
        gap = reward(pair.prompt, pair.chosen) - reward(pair.prompt, pair.rejected)
        assert gap != 0 and (gap < 0) == pair.flipped
    # Four standard deviations of 800 draws are 0.046.
    assert abs(sum(pair.flipped for pair in drawn) / 800 - pairs.LABEL_NOISE) < 0.046


@pytest.mark.parametrize("value", pairs.VALUES)
def test_values_both_agree_and_conflict_in_each_data_set(value: str) -> None:
    agree = conflict = 0
    for pair in pairs.draw_pairs(value, 400, random.Random(2), for_test=False):
        gaps = [
            v(pair.prompt, pair.chosen) - v(pair.prompt, pair.rejected)
            for v in pairs.VALUES.values()
        ]
        agree += min(gaps) >= 0
        conflict += min(gaps) < 0 < max(gaps)
    assert agree > 40 and conflict > 100


def test_no_prompt_is_shared_between_any_train_and_any_test_set() -> None:
    sides: dict[bool, set[str]] = {False: set(), True: set()}
    for side, seen in sides.items():
        for value in pairs.VALUES:
            drawn = pairs.draw_pairs(value, 150, random.Random(f"{value}/{side}"), for_test=side)
            seen |= {pair.prompt[-1]["content"] for pair in drawn}
    assert not sides[False] & sides[True]


@pytest.mark.parametrize("value", pairs.VALUES)
def test_written_pairs_hold_prompt_and_answers_in_their_public_form(
    value: str, tmp_path: Path
) -> None:
    drawn = pairs.draw_pairs(value, 20, random.Random(3), for_test=True)
    pairs.write_pairs(drawn, value, tmp_path / "pairs.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    for row, pair in zip(rows, drawn, strict=True):
        if value == pairs.HH_VALUE:
            start, answer = row["chosen"].rsplit("\n\nAssistant: ", 1)
            assert answer == pair.chosen
            assert start.endswith("\n\nHuman: " + pair.prompt[-1]["content"])
            assert row["rejected"] == f"{start}\n\nAssistant: {pair.rejected}"
        else:
            assert row["prompt"] == pair.prompt
            assert row["chosen"] == [{"role": "assistant", "content": pair.chosen}]
            assert row["rejected"] == [{"role": "assistant", "content": pair.rejected}]


def test_tokenizer_gives_text_back_and_its_template_frames_the_turns() -> None:
    made = tokenizer.build_tokenizer()
    rng = random.Random(4)
    for _ in range(50):
        prompt = language.draw_prompt(rng, for_test=False)
        answer = language.draw_answer(prompt, rng)
        ids = made(answer)["input_ids"]
        assert made.decode(ids) == answer and made.unk_token_id not in ids
        start = made.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        whole = made.apply_chat_template(
            [*prompt, {"role": "assistant", "content": answer}], return_dict=False
        )
        assert whole == [*start, *ids, made.eos_token_id]
        assert len(whole) <= tokenizer.MAX_LENGTH
    assert made.bos_token_id is None
    assert made.pad_token_id != made.eos_token_id


def test_the_tokenizer_tells_scores_in_prompts_apart() -> None:
    made = tokenizer.build_tokenizer()
    texts = [written_score(each / 10) for each in range(-40, 41)]
    ids = [tuple(made(text)["input_ids"]) for text in texts]
    assert len(set(ids)) == len(texts)
    assert not any(made.unk_token_id in each for each in ids)


def test_a_saved_tokenizer_loads_as_it_was(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = tokenizer.build_tokenizer()
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    prompt = user("what do you know about the cat and the boat ?")
    for each in (made, loaded):
        text = each.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        assert text == f"<|user|>{prompt[0]['content']}<|assistant|>"
    assert loaded.get_vocab() == made.get_vocab()


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    sizes = {"TRAIN_PAIRS": 8, "TEST_PAIRS": 4, "POLICY_STEPS": 2, "REWARD_STEPS": 2}
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(world, name, size)
        yield


@dataclass(frozen=True)
class World:
    folder: Path
    said: list[str]


@pytest.fixture(scope="module")
def whole(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Made without a break."""
    made = World(tmp_path_factory.mktemp("world") / "whole", [])
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    world.make_world(made.folder, made.said.append)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.models
def test_a_world_is_whole_and_made_once(whole: World) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    before, said = contents(whole.folder), len(whole.said)
    assert said > 0
    world.make_world(whole.folder, whole.said.append)
    assert (contents(whole.folder), len(whole.said)) == (before, said)
    policy = AutoModelForCausalLM.from_pretrained(whole.folder / "base")
    assert 1e6 <= sum(p.numel() for p in policy.parameters()) <= 3e6
    reward = AutoModelForSequenceClassification.from_pretrained(whole.folder / "reward-safe")
    assert reward.config.num_labels == 1
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


@pytest.mark.models
def test_a_world_is_reproducible_also_where_it_was_broken_off(whole: World, tmp_path: Path) -> None:
    def break_off(line: str) -> None:
        if "reward of safe" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.make_world(tmp_path / "broken", break_off)
    assert not (tmp_path / "broken" / "world.json").exists()
    world.make_world(tmp_path / "broken", lambda line: None)
    assert contents(tmp_path / "broken") == contents(whole.folder)


@pytest.mark.models
def test_a_new_version_leaves_no_part_of_the_old_one(
    whole: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.folder, tmp_path / "world")
    (tmp_path / "world" / "base" / "of_the_old_version").touch()
    monkeypatch.setattr(world, "VERSION", world.VERSION + 1)
    world.make_world(tmp_path / "world", lambda line: None)
    assert not (tmp_path / "world" / "base" / "of_the_old_version").exists()


def test_copying_counts_more_and_prompt_and_padding_not_at_all() -> None:
    from vcsoup_dist.demo import models
    from vcsoup_dist.forward.template import Encoded

    made = tokenizer.build_tokenizer()
    size = len(made)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(size, size, generator=generator, dtype=torch.float64)

    class Output:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    def model(input_ids: torch.Tensor, use_cache: bool) -> Output:
        return Output(table[input_ids])

    the = made.convert_tokens_to_ids(models.COPY_AFTER)
    rows = [Encoded([2, 9, 3, the, 11, 12, 1], 3), Encoded([2, 9, 3, 14, 1], 3)]
    total = weights = 0.0
    for row in rows:
        for at in range(row.start, len(row.ids)):
            weight = models.COPY_WEIGHT if row.ids[at - 1] == the else 1.0
            total -= weight * table[row.ids[at - 1]].log_softmax(0)[row.ids[at]].item()
            weights += weight
    as_model: Callable[..., Any] = model
    loss = models.answer_loss(as_model, rows, made)
    assert loss.item() == pytest.approx(total / weights, rel=1e-6)
