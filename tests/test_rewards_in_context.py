"""Scores in prompts: what is written, what is asked for, and what a model reads."""

from __future__ import annotations

import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import CHAT_TEMPLATE, save_tiny_model, write_model_files, write_pairs
from hypothesis import given
from hypothesis import strategies as st

from vcsoup_dist.check.model import check_model
from vcsoup_dist.errors import UserError
from vcsoup_dist.evaluation.generate import generate_answers, load_model
from vcsoup_dist.evaluation.prompts import Prompt
from vcsoup_dist.forward.template import Unusable, encode_prompt
from vcsoup_dist.forward.tokenizer import open_tokenizer
from vcsoup_dist.identity import Hashes
from vcsoup_dist.in_context.encoding import check_arrival, scored_pair
from vcsoup_dist.in_context.prompts import AddedText, added_scores, written_score
from vcsoup_dist.in_context.stage import PartScores
from vcsoup_dist.in_context.targets import (
    near_answers,
    score_bounds,
    standardised_answers,
    target_scores,
)
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.recipe import Evaluation, Recipe, Training
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.in_context import ScorePrompt
from vcsoup_dist.records.pairs import PairsFile, PairSlice, PairsManifest
from vcsoup_dist.records.union import HELD_OUT, TRAIN, UnionManifest, union_schema
from vcsoup_dist.tokens.stage import Part
from vcsoup_dist.workspace import Product

NUMBERS = [written_score(i / 10) for i in range(-60, 61)]
TEMPLATE = "old {u} new {v}"
HOW = {place: ScorePrompt(TEMPLATE, place, ["u", "v"]) for place in ("end", "system")}  # type: ignore[arg-type]
USER = [{"role": "user", "content": "the cat"}]
TRAINING = Training(max_length=40)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("with-numbers")
    save_tiny_model(folder, more_words=[*NUMBERS, "<|system|>"])
    return folder


@pytest.fixture
def tokenizer(base):
    return open_tokenizer(str(base), None)


def test_targets_are_rics_map_between_the_bounds():
    """As its authors' code gives them, where the draws go from -3.9 to 4.1."""
    bounds = np.array([[-3.9, -3.9], [4.1, 4.1]])
    assert target_scores((1, 0), bounds) == (4.1, -3.9)
    assert target_scores((0.5, 0.5), bounds) == (1.8, 1.8)
    assert target_scores((0.8, 0.2), bounds) == (3.9, -2.0)
    assert target_scores((1 / 3,) * 3, np.array([[-4.0] * 3, [4.0] * 3])) == (0.6,) * 3


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.data())
def test_a_target_is_its_formula_number_by_number(raw, data):
    weights = [each / sum(raw) for each in raw]
    low, high = (
        [data.draw(st.floats(*span)) for _ in weights] for span in ((-5.0, 0.0), (0.0, 5.0))
    )
    norm = math.sqrt(sum(w * w for w in weights))
    for found, w, a, b in zip(
        target_scores(weights, np.array([low, high])), weights, low, high, strict=True
    ):
        assert found == pytest.approx(w / norm * (b - a) + a, abs=0.0501)
        assert round(found, 1) == found


def test_gaussian_bounds_are_the_extremes_of_normal_draws_and_always_the_same():
    low, high = score_bounds(np.zeros((3, 2)), "gaussian")
    assert ((low > -5) & (low < -3.7) & (high > 3.7) & (high < 5)).all()
    assert (score_bounds(np.ones((9, 2)), "gaussian") == [low, high]).all()


def test_bounds_are_quantiles_and_near_means_near_on_every_value():
    answers = np.array([[i / 100, -i / 50] for i in range(101)])
    low, high = score_bounds(answers, (0.1, 0.9))
    assert low == pytest.approx([0.1, -1.8]) and high == pytest.approx([0.9, -0.2])
    assert near_answers(answers, (1.0, -2.0)) == sum(
        abs(u - 1) <= 0.5 and abs(v + 2) <= 0.5 for u, v in answers
    )
    assert near_answers(answers, (1.0, 0.0)) == 0


def test_scores_are_standardised_over_both_answers_of_the_union_alone(tmp_path):
    rows = [
        {"once": once, "chosen_u": c, "rejected_u": r, "chosen_v": 2 * c, "rejected_v": -r}
        for once, c, r in ((True, 1.0, 0.5), (False, 9.0, 9.0), (True, -1.0, 3.0))
    ]
    pq.write_table(pa.Table.from_pylist(rows, union_schema(["u", "v"])), tmp_path / TRAIN)
    u, v = [1.0, 0.5, -1.0, 3.0], [2.0, -0.5, -2.0, -3.0]
    mean, std = ({"u": of(u), "v": of(v)} for of in (statistics.fmean, statistics.pstdev))
    UnionManifest(["u", "v"], 2, 3, 0, 0, 0, mean, std, {}, {}).write(tmp_path)
    found = standardised_answers(tmp_path, ["u", "v"])
    assert found.mean(axis=0) == pytest.approx([0, 0]) and found.std(axis=0) == pytest.approx(
        [1, 1]
    )
    assert found[:, 0] == pytest.approx([(x - mean["u"]) / std["u"] for x in u])
    assert found[:, 1] == pytest.approx([(x - mean["v"]) / std["v"] for x in v])


def test_parts_of_several_files_get_the_scores_of_their_own_pairs(tmp_path):
    pairs, union, out = tmp_path / "pairs", tmp_path / "union", tmp_path / "out"
    pairs.mkdir()
    union.mkdir()
    files = [PairsFile("train-00000.parquet", 3), PairsFile("train-00001.parquet", 2)]
    PairsManifest(rows=9, train=5, heldout=2, files=files).write(pairs)

    def row(dataset: str, place: int, once: bool, reward: float) -> dict:
        of = {"chosen_u": reward, "rejected_u": reward + 100}
        return {"dataset": dataset, "row": place, "once": once, **of}

    schema = union_schema(["u"])
    train = [
        row("u", 0, True, 1),
        row("u", 2, False, 2),
        row("u", 4, True, 3),
        row("v", 1, True, 4),
    ]
    pq.write_table(pa.Table.from_pylist(train, schema), union / TRAIN)
    pq.write_table(pa.Table.from_pylist([row("u", 1, True, 5)], schema), union / HELD_OUT)
    UnionManifest(["u"], 3, 4, 1, 0, 0, {"u": 1.0}, {"u": 2.0}, {}, {}).write(union)
    scores = PartScores(pairs, union, "u", ["u"])

    def of(file: str, first: int, rows: int) -> list[float]:
        found = scores.of(Part(PairSlice(pairs / file, first, rows), out)).scores
        assert found.shape == (rows, 2, 1)
        np.testing.assert_equal(
            found[:, 1] - found[:, 0], np.where(np.isnan(found[:, 0]), np.nan, 50)
        )
        return found[:, 0, 0].tolist()

    nan = math.nan
    np.testing.assert_equal(of("train-00000.parquet", 0, 3), [0, nan, nan])
    np.testing.assert_equal(of("train-00001.parquet", 0, 2), [nan, 1])
    np.testing.assert_equal(of("train-00001.parquet", 1, 1), [1])
    np.testing.assert_equal(of("heldout.parquet", 0, 2), [nan, 2])


def test_scores_are_written_with_one_decimal_into_their_placeholders():
    how = ScorePrompt("{ } <rm1> {u} <rm2> {v} again {u}", "end", ["v", "u"])
    assert added_scores(how, [-1.26, 0.04]).text == "{ } <rm1> 0.0 <rm2> -1.3 again 0.0"
    assert written_score(-0.04) == "0.0"


def test_the_text_goes_to_the_end_or_into_the_system_message():
    system = [{"role": "system", "content": "s"}, *USER]
    end, inside = AddedText("2.0", "end"), AddedText("2.0", "system")
    assert end.to(system) == [system[0], {"role": "user", "content": "the cat\n\n2.0"}]
    assert inside.to(system) == [{"role": "system", "content": "s\n\n2.0"}, *USER]
    assert inside.to(USER) == [{"role": "system", "content": "2.0"}, *USER]
    assert USER == [{"role": "user", "content": "the cat"}]


@pytest.mark.models
@pytest.mark.parametrize("place", ["end", "system"])
def test_each_answer_comes_after_its_own_scores(tokenizer, place):
    pair = Pair("a", USER, "yes", "no", {})
    found = scored_pair(tokenizer, pair, np.array([[0.31, -1.2], [2.0, 0.0]]), HOW[place], TRAINING)
    texts = [tokenizer.decode(side.ids[: side.start]) for side in found.pair]
    scores = ["old 0.3 new -1.2", "old 2.0 new 0.0"]
    for text, own, other in zip(texts, scores, scores[::-1], strict=True):
        assert own in text and other not in text
    answers = [tokenizer.decode(side.ids[side.start :]) for side in found.pair]
    assert ["yes" in answers[0], "no" in answers[1]] == [True, True]


@pytest.mark.models
def test_scores_are_never_cut_from_a_long_prompt(tokenizer):
    long = [{"role": "user", "content": "cat " * 50}]
    scores = np.zeros((2, 2))
    short = Pair("a", long, "yes", "no", {})
    cut = scored_pair(tokenizer, short, scores, HOW["end"], TRAINING)
    assert [len(side.ids) for side in cut.pair] == [40, 40]
    assert all("old 0.0 new 0.0" in tokenizer.decode(side.ids[: side.start]) for side in cut.pair)
    assert scored_pair(tokenizer, short, scores, HOW["system"], TRAINING).pair is Unusable.TOO_LONG
    reaching = Pair("a", long, "yes " * 36, "no", {})  # into the scores, if the prompt were cut
    assert scored_pair(tokenizer, reaching, scores, HOW["end"], TRAINING).pair is Unusable.TOO_LONG


DROPS = CHAT_TEMPLATE.replace("for m in messages", "for m in messages if m['role'] != 'system'")
REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + CHAT_TEMPLATE
)


@pytest.mark.models
@pytest.mark.parametrize(
    "template, reason",
    [(DROPS, "drops the scores from the prompt; set place to `end`"), (REFUSES, "no system role")],
    ids=["dropped", "refused"],
)
def test_a_template_without_system_messages_is_one_line_that_says_what_to_set(
    tokenizer, template, reason
):
    check_arrival(tokenizer, HOW["system"], USER, "ric")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"^methods.ric.place: .*{reason}") as refused:
        check_arrival(tokenizer, HOW["system"], USER, "ric")
    assert "`end`" in str(refused.value) and "\n" not in str(refused.value)
    check_arrival(tokenizer, HOW["end"], USER, "ric")
    found = scored_pair(
        tokenizer, Pair("a", USER, "yes", "no", {}), np.zeros((2, 2)), HOW["system"], TRAINING
    )
    assert found.pair is Unusable.REFUSED and reason.partition(";")[0] in str(found.reason)


@pytest.mark.models
def test_a_tokenizer_without_numbers_is_refused(tiny_model):
    with pytest.raises(UserError, match="tokens are the same for the scores 0.0 and 1.0 of `u`"):
        check_arrival(open_tokenizer(str(tiny_model), None), HOW["end"], USER, "ric")


@pytest.mark.models
def test_a_model_answers_the_scored_prompts_and_the_answers_name_the_plain_ones(base):
    model, tokenizer = load_model(str(base), None, "fp32", "cpu")
    contents = ("a big red cat", "the dog", "river " * 9)
    plain = [
        Prompt(f"{i}", "u", [{"role": "user", "content": text}]) for i, text in enumerate(contents)
    ]
    added = added_scores(HOW["end"], (1.5, -0.5))
    # The longest plain prompt just fits: what is added leaves none out.
    most = max(len(encode_prompt(tokenizer, each.messages)) for each in plain)
    settings = Evaluation(
        max_prompt_tokens=most, max_new_tokens=8, temperature=0, batch=2, dtype="fp32"
    )
    found = generate_answers(model, tokenizer, plain, settings, added)
    assert [answer.prompt for answer in found] == plain
    by_hand = [Prompt(each.id, "u", added.to(each.messages)) for each in plain]
    expected = generate_answers(
        model, tokenizer, by_hand, settings.model_copy(update={"max_prompt_tokens": 99})
    )
    assert [answer.text for answer in found] == [answer.text for answer in expected]
    without = generate_answers(model, tokenizer, plain, settings)
    assert [answer.plain for answer in found] == [answer.asked for answer in without]
    assert all(len(answer.asked) > len(answer.plain) for answer in found)
    assert [answer.text for answer in found] != [answer.text for answer in without]
    narrow = settings.model_copy(update={"max_new_tokens": 4096 - most})
    with pytest.raises(UserError, match="with the scores in it, .* are 4 more than the 4096"):
        generate_answers(model, tokenizer, plain, narrow, added)


VALUE = {"data": {"path": "pairs.jsonl"}, "reward": {"callable": "rewards.py:length"}}
RECIPE = {"name": "x", "model": "base", "values": {"u": VALUE, "v": VALUE}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    write_model_files(folder / "base")
    write_pairs(folder / "pairs.jsonl", 5)
    (folder / "rewards.py").write_text("def length(p, r): ...\n")
    return folder


def loaded(folder: Path, options: dict | None = None, **changes: object) -> Recipe:
    file = folder / "recipe.yaml"
    methods = {"ric": {"kind": "rewards_in_context", **(options or {})}}
    file.write_text(yaml.safe_dump(RECIPE | {"methods": methods} | changes, sort_keys=False))
    return load_recipe(file)


def planned(folder: Path, options: dict | None = None, **changes: object) -> dict[str, Product]:
    plan = make_plan(loaded(folder, options, **changes), Hashes(folder / "hashes.json"))
    return {each.name: each for each in plan}


MISTAKES = {
    "no scores": ({"template": "be good"}, r"template: lacks `\{u\}`.* give it \{u\}, \{v\}"),
    "a score is missing": ({"template": "u {u}"}, r"template: lacks `\{v\}`"),
    "another placeholder": (
        {"template": "{u} {v} {helpful}"},
        r"template: `\{helpful\}` is not the score of a value; the scores are \{u\}, \{v\}",
    ),
    "bounds": ({"bounds": [0.9, 0.1]}, "bounds: give two quantiles"),
    "no bounds": (
        {"bounds": "normal"},
        "methods.ric.bounds: give two quantiles, such as .*, or `gaussian`",
    ),
    "another place": ({"place": "start"}, "methods.ric.place"),
    "beta": ({"beta": 0.1}, "is trained by SFT, which has no beta"),
}


@pytest.mark.parametrize("options, line", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_the_options_is_one_line(folder, options, line):
    with pytest.raises(UserError, match=line) as refused:
        loaded(folder, options)
    assert len(str(refused.value).splitlines()) == 1


def test_one_policy_takes_the_steps_and_answers_of_all_values_policies(folder):
    options = {"learning_rate": 1e-4}
    recipe = loaded(folder, options, training={"steps": 5, "pairs_per_step": 8, "sft_weight": 0.1})
    training = recipe.methods["ric"].training(recipe)
    assert (training.steps, training.pairs_per_step) == (10, 16)
    assert (training.objective, training.learning_rate) == ("sft", 1e-4)
    plan = planned(folder, options, reweighting={"grid": 0.5})
    policies = [name for name in plan if name.startswith("policies/")]
    assert policies == ["policies/ric/union/seed-0"]
    read = {each.stage for each in plan[policies[0]].inputs}
    assert read == {"union", "read", "in_context"}
    # Its held-out pairs have scores in their prompts too.
    assert all(each.covers for name, each in plan.items() if name.startswith("scores/"))
    asked = [name for name, each in plan.items() if "asked" in each.made_from]
    assert asked == [f"evaluation/ric/seed-0/u-{u}_v-{v}" for u, v in (
        ("0.00", "1.00"), ("0.50", "0.50"), ("1.00", "0.00"),
    )]  # fmt: skip


def test_values_that_borrow_pairs_are_scores_of_the_same_answers_and_seeds_share_their_tokens(
    folder,
):
    values = {"u": VALUE, "w": VALUE | {"data": {"pairs_of": ["u"]}}}
    plan = planned(folder, values=values, seeds=[0, 3], reweighting={"weights": [[0.4, 0.6]]})
    assert [name for name in plan if name.startswith("in_context/")] == ["in_context/ric/u"]
    assert plan["in_context/ric/u"].made_from["scores"]["values"] == ["u", "w"]
    policies = [plan[f"policies/ric/union/seed-{seed}"] for seed in (0, 3)]
    assert policies[0].inputs == policies[1].inputs
    assert policies[0].fingerprint != policies[1].fingerprint


def test_what_is_written_remakes_the_policy_and_what_is_asked_the_answers_alone(folder):
    before = planned(folder)

    def changed(**options: object) -> set[str]:
        after = planned(folder, options)
        return {
            name.split("/")[0]
            for name, each in before.items()
            if after[name].fingerprint != each.fingerprint
        }

    assert changed(bounds=[0.05, 0.95]) == changed(bounds="gaussian") == {"evaluation", "report"}
    everything = {"in_context", "policies", "evaluation", "report"}
    assert changed(template="{v} {u}") == changed(place="system") == everything
    prints = {name: each.fingerprint for name, each in before.items() if "asked" in each.made_from}
    assert len(set(prints.values())) == len(prints) == 5


@pytest.mark.models
def test_check_says_before_the_run_that_scores_do_not_arrive(base, folder, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(DROPS)
    model, options = str(tmp_path / "base"), {"place": "system", "template": TEMPLATE}
    plan = planned(folder, options, model=model)
    with pytest.raises(UserError, match=r"^methods.ric.place: .*drops the scores"):
        check_model(loaded(folder, options, model=model), list(plan.values()), {"train"})
    options["place"] = "end"
    plan = planned(folder, options, model=model)
    check_model(loaded(folder, options, model=model), list(plan.values()), {"train"})
