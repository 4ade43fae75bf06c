"""`vcsoup pick`: which model is meant, that its folder is usable, and what its card says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import vcsoup
from conftest import save_tiny_model, write_pairs
from huggingface_hub import ModelCard
from merging import files_of, read_all
from paused_merge import PAUSING, kill, paused

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pick.base_card import BaseModel
from vcsoup_dist.pick.card import CardFacts, card_text
from vcsoup_dist.pick.choose import Wish, choose
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.pipeline.plan_file import write_plan
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.training_summary import PairMetrics, TrainingSummary
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.report.statistics.summarise import summarise
from vcsoup_dist.workspace import Product, Workspace

pytestmark = [pytest.mark.models, pytest.mark.processes]

RECIPE = {
    "name": "two",
    "model": "base",
    "values": {
        "long": {"data": {"path": "pairs.jsonl"}, "reward": {"callable": "rewards.py:longer"}},
        "short": {"data": {"pairs_of": ["long"]}, "reward": {"callable": "rewards.py:shorter"}},
    },
    "methods": ["modpo", "vc_soup"],
    "seeds": [0, 1],
    "soup": {"grid": 0.5},
    "reweighting": {"weights": [[0.5, 0.5]]},
}
REWARDS = "def longer(prompt, response): ...\ndef shorter(prompt, response): ...\n"
BASE_CARD = "---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\n---\n# Base\n"
MEANS = {"modpo": (0.4, 0.4), "1.0": (1.0, 0.0), "0.5": (0.5, 0.6), "0.0": (0.1, 0.9)}
"""Of the rewards `long` and `short`; of vc_soup by the weight of `long`."""
MIDDLE = "long-0.50_short-0.50"


class World:
    """A folder with recipe.yaml, and `run`, a run directory with its policies and its report."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "run"
        save_tiny_model(folder / "base")
        (folder / "base" / "README.md").write_text(BASE_CARD)
        (folder / "base" / "LICENSE").write_text("Do as you like.")
        write_pairs(folder / "pairs.jsonl", 5)
        (folder / "rewards.py").write_text(REWARDS)
        workspace, self.plan = opened(folder, RECIPE)
        for seed, product in enumerate(each for each in self.plan if each.stage == "train"):
            with workspace.publishing(product) as draft:
                save_tiny_model(draft.output, seed)
                shutil.copy(folder / "base" / "LICENSE", draft.output)
                metrics = PairMetrics(0.5)
                TrainingSummary(7, 4, {}, 1.0, metrics, None).write(draft.output)
        shutil.copytree(self.root, folder / "unevaluated")
        with workspace.publishing(self.plan[-1]) as draft:
            summarise(self.evaluated(), resamples=100, confidence=0.95).write(draft.output)

    def evaluated(self) -> list[Evaluated]:
        """Rewards of six prompts for every evaluation of the plan."""
        found = []
        for each in (one for one in self.plan if one.stage == "evaluate"):
            weights = dict(zip(("long", "short"), each.weights or (), strict=False)) or None
            key = each.method if each.method == "modpo" else str((each.weights or (0,))[0])
            means = MEANS[key] if each.method else (0.0, 0.2)
            rewards = {
                value: mean + np.linspace(-0.1, 0.1, 6)
                for value, mean in zip(("long", "short"), means, strict=True)
            }
            found.append(Evaluated(each.name, each.method, each.seed, weights, rewards, 0.25))
        return found

    def pick(self, *arguments: object, run: str = "run", code: int = 0) -> str:
        """`vcsoup pick` of the recipe; what it said."""
        return vcsoup("pick", "recipe.yaml", "-d", run, *arguments, folder=self.folder, code=code)


def opened(folder: Path, recipe: dict) -> tuple[Workspace, list[Product]]:
    """The run directory `run` in a folder, and the plan of a recipe that is written there."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(folder / "recipe.yaml")
    return Workspace.open(folder / "run", loaded), make_plan(loaded, Hashes(folder / "hashes.json"))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("pick"))


def test_the_balanced_soup_is_a_model_that_transformers_loads_and_answers_with(world) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said = world.pick("--balanced")
    folder = world.root / "picked" / "vc_soup" / "seed-0" / MIDDLE
    for line in ("transformers chat", "vllm serve", "hf upload two-vc_soup"):
        assert f"{line} {folder}" in said
    assert read_all(folder) == read_all(folder_of_merge(world))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the cat"}], add_generation_prompt=True, return_tensors="pt",
        return_dict=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]
    assert {"generation_config.json", "chat_template.jinja"} <= set(files_of(folder))
    assert "training.json" not in files_of(folder)  # it is about one policy
    assert "as they were written" in vcsoup("verify", folder, folder=world.folder)


def folder_of_merge(world: World) -> Path:
    """What `vcsoup merge` makes of the same policies."""
    policies = [f"run/policies/vc_soup/{value}/seed-0" for value in ("long", "short")]
    vcsoup("merge", *policies, "--weights", "0.5,0.5", "--out", "merged", folder=world.folder)
    return world.folder / "merged"


def test_the_card_is_one_that_the_hub_reads(world) -> None:
    world.pick("--candidate", MIDDLE, "--out", "carded")
    card = ModelCard.load(world.folder / "carded" / "README.md")
    data = card.data
    assert (data.license, data.license_name, data.license_link) == ("other", "tiny", "LICENSE")
    assert (world.folder / "carded" / "LICENSE").exists()
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["vc-soup", "merge"]
    assert data.base_model is None and data.datasets is None  # folders are no ids of the hub
    found = {each.metric_name: each for each in data.eval_results}
    assert set(found) == {"mean reward of long", "mean reward of short"}
    result = found["mean reward of short"]
    assert result.metric_value == pytest.approx(0.6)
    assert result.metric_args["low"] < 0.6 < result.metric_args["high"]
    assert result.metric_args["theta_0"] == pytest.approx(0.2)
    assert "| 0.600 [0.521, 0.679] | 0.200 | 0.400 [0.400, 0.400] | 100 % [48, 100] |" in card.text
    assert "It is one of 4 evaluated candidates" in card.text
    assert "25 % of its answers did not end" in card.text
    assert "seeds 0, 1; this model is that of\nseed 0" in card.text
    assert str(world.folder) not in str(card)


def test_a_model_of_the_hub_and_its_data_have_their_ids_in_the_card(tmp_path, monkeypatch) -> None:
    from vcsoup_dist.pick.base_card import base_model_of
    from vcsoup_dist.pick.front_matter import front_matter

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    long = RECIPE["values"]["long"] | {"data": {"path": "Anthropic/hh-rlhf"}}
    values = RECIPE["values"] | {"long": long}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE | {"model": "meta-llama/Llama-3", "values": values}))
    recipe = load_recipe(file)
    choice = choose(recipe, Wish(weights=(0.3, 0.7)), None)
    text = front_matter(recipe, choice, "a title", base_model_of(recipe), None)
    data = ModelCard(text).data
    assert data.base_model == "meta-llama/Llama-3" and data.datasets == ["Anthropic/hh-rlhf"]
    assert data.license is None and data.eval_results is None


def test_one_prompt_gives_figures_without_intervals(world) -> None:
    recipe = load_recipe(world.folder / "recipe.yaml")
    one = [
        replace(each, rewards={value: found[:1] for value, found in each.rewards.items()})
        for each in world.evaluated()
    ]
    summary = summarise(one, resamples=100, confidence=0.95)
    choice = choose(recipe, Wish(balanced=True), summary)
    text = card_text(recipe, choice, CardFacts(BaseModel(None, "base"), [], None, summary))
    assert "| 0.500 | 0.100 | 0.400 | 100 % |" in text and "One prompt was answered" in text
    assert set(ModelCard(text).data.eval_results[0].metric_args) == {"theta_0"}


def test_a_soup_that_was_not_evaluated_has_no_figures(world) -> None:
    world.pick("--weights", "0.3,0.7", "--seed", 1, "--out", "other")
    card = ModelCard.load(world.folder / "other" / "README.md")
    assert card.data.eval_results is None
    assert "This model was not evaluated" in card.text
    assert "| long | 0.3 | 7 | 4 |" in card.text


def test_a_policy_is_picked_as_it_is(world) -> None:
    world.pick("--balanced", "--method", "modpo", "--seed", 1, "--out", "policy")
    own = world.root / "policies" / "modpo" / MIDDLE / "seed-1"
    assert read_all(world.folder / "policy") == read_all(own)
    assert ModelCard.load(world.folder / "policy" / "README.md").data.tags == ["vc-soup", "modpo"]


def test_killed_in_the_middle_it_resumes_and_ends_with_the_same_bytes(world) -> None:
    arguments = ("pick", "recipe.yaml", "-d", "run", "--weights", "0.25,0.75", "--out")
    process = paused(*arguments, "killed", folder=world.folder, driver=PAUSING.format(entries=2))
    kill(process)
    assert not (world.folder / "killed").exists()
    resumed = vcsoup(*arguments, "killed", folder=world.folder)
    assert "2 chunks were done before" in resumed
    vcsoup(*arguments, "calm", folder=world.folder)
    assert files_of(world.folder / "killed") == files_of(world.folder / "calm")
    (world.folder / "calm" / "README.md").unlink()  # as after a kill before the card was written
    assert "nothing to do" in vcsoup(*arguments, "calm", folder=world.folder)
    assert files_of(world.folder / "killed") == files_of(world.folder / "calm")


def test_a_card_that_somebody_edited_is_kept(world) -> None:
    world.pick("--candidate", MIDDLE, "--out", "edited")
    card = world.folder / "edited" / "README.md"
    written = card.read_text()
    card.write_text(written + "Mine.\n")
    assert "is kept" in world.pick("--candidate", MIDDLE, "--out", "edited")
    assert card.read_text().endswith("Mine.\n")
    world.pick("--candidate", MIDDLE, "--out", "edited", "--overwrite")
    assert card.read_text() == written


@pytest.mark.parametrize(
    ("wish", "method", "weights"),
    [
        (Wish(balanced=True), "vc_soup", (0.5, 0.5)),
        (Wish(balanced=True, method="modpo"), "modpo", (0.5, 0.5)),
        (Wish(prefer={"long": 0.9, "short": 0.1}), "vc_soup", (1.0, 0.0)),
        (Wish(prefer={"short": 2}), "vc_soup", (0.0, 1.0)),
        (Wish(candidate=MIDDLE), "vc_soup", (0.5, 0.5)),
        (Wish(candidate=f"runs/x/soups/vc_soup/seed-1/{MIDDLE}/"), "vc_soup", (0.5, 0.5)),
        (Wish(candidate=f"policies/modpo/{MIDDLE}/seed-1"), "modpo", (0.5, 0.5)),
        (Wish(candidate="modpo: 0.5 long + 0.5 short"), "modpo", (0.5, 0.5)),
        (Wish(weights=(0.3, 0.7)), "vc_soup", (0.3, 0.7)),
    ],
)
def test_every_way_to_ask_finds_its_model(world, wish, method, weights) -> None:
    recipe = load_recipe(world.folder / "recipe.yaml")
    choice = choose(recipe, wish, summarise(world.evaluated(), resamples=100, confidence=0.95))
    assert (choice.method, choice.candidate.weights) == (method, weights)
    assert choice.seed == (1 if "seed-1" in (wish.candidate or "") else 0)
    assert (choice.row is None) == (weights == (0.3, 0.7))


def test_beyond_the_simplex_any_sum_within_the_box_goes(world) -> None:
    file = world.folder / "box.yaml"
    file.write_text(yaml.safe_dump(RECIPE | {"soup": {"box": [0, 1], "grid": 0.5}}))
    recipe = load_recipe(file)
    assert choose(recipe, Wish(weights=(0.8, 0.9)), None).candidate.weights == (0.8, 0.9)
    for weights, said in (((0.5, 1.2), r"in soup.box, \[0, 1\]"), ((0.0, 0.0), "is theta_0")):
        with pytest.raises(UserError, match=said):
            choose(recipe, Wish(weights=weights), None)


def test_a_soup_beyond_the_simplex_is_summed_with_the_theta_0_of_its_policies(
    world, tmp_path
) -> None:
    folder = Path(shutil.copytree(world.folder, tmp_path / "copy"))
    workspace, plan = opened(folder, RECIPE | {"soup": {"box": [0, 1], "grid": 0.5}})
    write_plan(workspace.root, plan)  # so the run directory does without the files of the recipe
    vcsoup("pick", "run", "--weights", "0.5,0.75", "--out", "boxed", folder=folder)
    policies = [f"run/policies/vc_soup/{value}/seed-0" for value in ("long", "short")]
    arguments = ("--base", "base", "--weights", "0.5,0.75", "--out", "summed")
    vcsoup("merge", *policies, *arguments, folder=folder)
    assert read_all(folder / "boxed") == read_all(folder / "summed")
    (folder / "pairs.jsonl").unlink()
    vcsoup("pick", "run", "--candidate", MIDDLE, folder=folder)
    save_tiny_model(folder / "base", 9)
    said = vcsoup("pick", "run", "--weights", "0.5,0.25", folder=folder, code=2)
    assert "is not what the policies were trained from" in said


@pytest.mark.parametrize("wish", [Wish(balanced=True), Wish(prefer={"long": 1})])
def test_of_a_method_without_candidates_in_the_report_nothing_is_picked(world, wish) -> None:
    recipe = load_recipe(world.folder / "recipe.yaml")
    others = [each for each in world.evaluated() if each.method != "modpo"]
    summary = summarise(others, resamples=100, confidence=0.95)
    with pytest.raises(UserError, match="report has no candidate of modpo: `vcsoup run`"):
        choose(recipe, replace(wish, method="modpo"), summary)


def test_where_theta_0_is_best_nothing_is_picked_in_its_place(world) -> None:
    recipe = load_recipe(world.folder / "recipe.yaml")
    start, *others = world.evaluated()
    best = Evaluated("base", None, None, None, {v: r + 2 for v, r in start.rewards.items()})
    summary = summarise([best, *others], resamples=100, confidence=0.95)
    with pytest.raises(UserError, match="theta_0.* is the most balanced.*--method"):
        choose(recipe, Wish(balanced=True), summary)
    assert choose(recipe, Wish(balanced=True, method="vc_soup"), summary).method == "vc_soup"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of --balanced, --weights, --prefer and --candidate"),
        (("--balanced", "--weights", "1,0"), "give one of"),
        (("--candidate", "long-0.5_short-0.5"), "did you mean `long-0.50_short-0.50`"),
        (("--candidate", f"{MIDDLE}", "--method", "vcsoup"), "the recipe has modpo, vc_soup"),
        (("--weights", "0.3,0.7", "--method", "modpo"), "soups of any weights have vc_soup"),
        (("--weights", "1"), "gives 1 of 2 weights, in this order: long, short"),
        (("--weights", "0.6,0.6"), "sum to 1.2, not to 1; give 0.5,0.5"),
        (("--weights=-0.5,1.5",), "must lie in [0, 1]"),
        (("--weights", "nan,1"), "must be finite"),
        (("--prefer", "long"), "such as helpful=0.7,harmless=0.3"),
        (("--prefer", "long=1,long=2"), "gives `long` twice"),
        (("--prefer", "funny=1"), "no value is called `funny`; there are long, short"),
        (("--prefer", "long=-1"), "weights >= 0"),
        (("--balanced", "--seed", "9"), "no seed 9; the recipe has 0, 1"),
        (("--balanced", "--out", "base"), "base: already exists"),
        (("--balanced", "--out", "run/policies/vc_soup/long/seed-0"), "seed-0"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line(world, arguments, said) -> None:
    before = files_of(world.root / "policies")
    lines = world.pick(*arguments, code=2).splitlines()
    assert said in lines[-1] and len([line for line in lines if line.startswith("vcsoup:")]) == 1
    assert files_of(world.root / "policies") == before


def test_without_a_report_weights_can_be_picked_and_the_balanced_cannot(world) -> None:
    said = world.pick("--balanced", run="unevaluated", code=2)
    assert "run `vcsoup run` first; --weights and --candidate need policies only" in said
    world.pick("--candidate", MIDDLE, "--out", "early", run="unevaluated")
    assert read_all(world.folder / "early") == read_all(folder_of_merge(world))


def test_merge_of_a_recipe_names_pick_where_it_is_given_weights(world) -> None:
    arguments = ("merge", "recipe.yaml", "-d", "run", "--weights", "0.3,0.7")
    said = vcsoup(*arguments, folder=world.folder, code=2)
    assert "`vcsoup pick recipe.yaml --weights" in said
