"""The counts that the report shows are those that reading, scoring and filtering left."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from vcsoup_dist.consistency import stage as consistency_stage
from vcsoup_dist.evaluation.prompts import choose_prompts
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.answer_figures import AnswerFigures
from vcsoup_dist.records.answers import Answers
from vcsoup_dist.records.summary import Summary
from vcsoup_dist.records.training_summary import PairMetrics, TrainingSummary
from vcsoup_dist.report import stage as report_stage
from vcsoup_dist.report.counts import (
    filters,
    pairs_read,
    pairs_scored,
)
from vcsoup_dist.report.page import TEMPLATES
from vcsoup_dist.report.pair_flow import pair_flows
from vcsoup_dist.scoring import stage as scoring_stage
from vcsoup_dist.workspace import Product, Workspace

PAIRS = 40
UNRATED = 3  # for `brief`
BAD = 2
SAME = 4


@dataclass(frozen=True)
class Run:
    recipe: Recipe
    workspace: Workspace
    report: Product


def rows() -> list[dict]:
    """Answers rated for two values, some for one alone; at the end rows that make no pair."""
    found = []
    for i in range(PAIRS):
        brief = [None, None] if i < UNRATED else [float(i % 5), float(i % 3)]
        found.append({"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}",
                      "k+": float(i % 7), "k-": 1.0, "b+": brief[0], "b-": brief[1]})  # fmt: skip
    numbers = {"k+": 1.0, "k-": 0.0, "b+": 1.0, "b-": 0.0}
    found += [{"prompt": f"bad {i}", "chosen": "", "rejected": "no", **numbers} for i in range(BAD)]
    same = {"chosen": "the same", "rejected": "the same"}
    found += [{"prompt": f"same {i}", **same, **numbers} for i in range(SAME)]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_files: Path) -> Run:
    folder = tmp_path_factory.mktemp("counts")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (folder / "judge.py").write_text("def judge(prompt, response):\n    return 0.0\n")
    judge = {"callable": "judge.py:judge"}
    data = {"path": "pairs.jsonl", "heldout_share": 0.1}
    recipe = {
        "name": "counts",
        "model": str(model_files),
        "values": {
            "kind": {"reward": {"columns": ["k+", "k-"]}, "judge": judge, "data": data},
            "brief": {"reward": {"columns": ["b+", "b-"]}, "judge": judge},
        },
        "methods": {"rewarded_soup": {}, "strict": {"kind": "vc_soup"}},
        "consistency": {"threshold": 0.3},
        "scoring": {"max_bad_rows": 0.5},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(folder / "recipe.yaml")
    workspace = Workspace.open(folder / "run", loaded)
    plan = make_plan(loaded, Hashes(folder / "run" / "hashes.json"))
    makers = (scoring_stage.read, scoring_stage.score, consistency_stage.make)
    for stage, maker in zip(("read", "score", "filter"), makers, strict=True):
        maker(loaded, workspace, [product for product in plan if product.stage == stage])
    (report,) = [product for product in plan if product.stage == "report"]
    return Run(loaded, workspace, report)


def test_every_row_and_pair_is_accounted_for(run: Run):
    (read,) = [pairs_read(run.workspace, each) for each in run.report.inputs_of("read")]
    assert read.dataset == "kind" and read.rows == PAIRS + BAD + SAME
    assert read.rejected == {
        "empty response": BAD, "chosen equals rejected": SAME, "column `b+` is null": UNRATED,
    }  # fmt: skip
    lost = sum(read.rejected.values()) + sum(read.left_out.values()) + read.duplicates
    assert read.training + read.heldout + read.leaked + lost == read.rows
    scored = pairs_scored(run.workspace, run.report)
    assert {each.value for each in scored} == {"kind", "brief"} and len(scored) == 2
    for each in scored:
        assert (each.dataset, each.pairs, each.unscored) == ("kind", read.training, 0)


def test_the_columns_of_the_data_table_add_up_to_the_rows_read(tmp_path, model_files, caplog):
    rated = [
        {"prompt": f"q{i // 3}", "response": f"r{i}", "good": i % 3 if i % 7 else None}
        for i in range(1200)
    ]
    rated += [{"prompt": "q0", "response": "", "good": 1}] * 3 + rated[9:15] + rated[30:32]
    text = "".join(json.dumps(row) + "\n" for row in rated)
    (tmp_path / "rated.jsonl").write_text(text)
    (tmp_path / "judge.py").write_text("def judge(prompt, response):\n    return 0.0\n")
    value = {
        "data": {"path": "rated.jsonl", "preferred_by": "good"},
        "reward": {"columns": ["chosen_good", "rejected_good"]},
        "judge": {"callable": "judge.py:judge"},
    }
    recipe = {"name": "x", "model": str(model_files), "values": {"kind": value}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(tmp_path / "recipe.yaml")
    workspace = Workspace.open(tmp_path / "run", loaded)
    plan = make_plan(loaded, Hashes(tmp_path / "hashes.json"))
    product = next(product for product in plan if product.stage == "read")
    with caplog.at_level("INFO", "vcsoup"):
        scoring_stage.read(loaded, workspace, [product])
    read = pairs_read(workspace, product)
    assert read.joined and read.returned_prompts == 3 and read.left_out and read.rejected
    page = TEMPLATES.get_template("data.html").render(pairs=[read], scores=[])
    first_row = page[page.index("<tbody>") :].split("</tr>")[0]
    rows, *places = [int(n.replace(",", "")) for n in re.findall(r">([\d,]+)<", first_row)]
    assert rows == sum(places) == len(rated) and len(places) == 7
    assert "kind: 3 times a prompt comes back" in page
    said = next(line for line in caplog.messages if line.startswith("pairs/kind:"))
    found = re.findall(r"\d+", said)
    assert sum(map(int, found)) == 2 * rows and str(read.joined) in found


def test_each_methods_report_is_found_by_value(run: Run):
    (kind,) = filters(run.recipe, run.workspace, run.report)
    assert kind.value == "kind" and set(kind.reports) == {"rewarded_soup", "strict"}
    for method, report in kind.reports.items():
        assert report.method == method and report.value == "kind"
        assert sum(report.counts.sign_patterns_kept.values()) == report.counts.kept


def test_the_comparison_is_vc_soups_whatever_the_order_of_the_methods(run: Run):
    (kind,) = filters(run.recipe, run.workspace, run.report)
    assert kind.shown == "strict"
    report = kind.reports[kind.shown]
    (own,) = [rule for rule in report.comparison.rules if rule.is_own]
    assert (own.name, own.count) == ("c >= 0.3", report.counts.kept)


def test_each_value_has_two_plots_as_vc_soup_sees_it(run: Run):
    (kind,) = filters(run.recipe, run.workspace, run.report)
    histogram, gaps = kind.plots
    assert histogram.caption == "kind: consistency of its pairs, as strict sees it"
    assert gaps.caption.startswith("kind: gaps")
    assert histogram.png != gaps.png and gaps.png.startswith(b"\x89PNG")


def test_the_stage_writes_all_its_files_from_what_the_stages_before_it_left(run: Run):
    pairs = {str(each.dataset): run.workspace.need(each) for each in run.report.inputs_of("read")}
    prompts = choose_prompts(pairs, run.recipe.evaluation.prompts)
    for product in run.report.inputs_of("train"):
        with run.workspace.publishing(product) as draft:
            left_out = {"too long": 3, "without an answer": 2}
            TrainingSummary(7, 30, left_out, 0.5, PairMetrics(0.25), None).write(draft.output)
    for number, product in enumerate(run.report.inputs_of("evaluate")):
        rewards = {"kind": float(number), "brief": -float(number)}
        answers = Answers(
            prompt_ids=[prompt.id for prompt in prompts],
            datasets=[prompt.dataset for prompt in prompts],
            prompts=[prompt.messages for prompt in prompts],
            texts=[f"answer of {product.name}"] * len(prompts),
            tokens=[3] * len(prompts),
            finished=[True] * len(prompts),
            repeated=[0.0] * len(prompts),
            logp=[-2.0] * len(prompts),
            logp_theta_0=[-3.0] * len(prompts),
            drawn_from_model=[True] * len(prompts),
            rewards={value: np.full(len(prompts), each) for value, each in rewards.items()},
        )
        with run.workspace.publishing(product) as draft:
            answers.write(draft.output)
    for each in pair_flows(run.recipe, run.workspace, run.report):
        (manifest,) = [pairs_read(run.workspace, one) for one in run.report.inputs_of("read")]
        assert (each.policies, each.steps, each.passes) == (("kind",), 7, 0.5)
        assert (each.read, each.unusable) == (PAIRS + BAD + SAME, BAD + SAME + UNRATED)
        assert each.read == each.unusable + each.other + manifest.training
        assert each.scored == manifest.training
        assert each.kept == 35 == each.trained + sum(each.left_out.values())
    report_stage.make(run.recipe, run.workspace, [run.report])
    folder = run.workspace.need(run.report)
    assert {file.name for file in folder.iterdir()} == {
        "answers.csv", "answers.json", "front.png", "hypervolume.png", "index.html",
        "product.json", "summary.json", "table.csv", "table.txt",
    }  # fmt: skip
    rows = Summary.read(folder).rows
    assert [row.method for row in rows] == [None, "rewarded_soup", "strict"]
    assert [row.cells["kind"].mean for row in rows] == [0.0, 1.0, 2.0]
    figures = AnswerFigures.read(folder)
    assert [row.log_ratio for row in figures.rows] == [1, 1, 1] and figures.is_kl
    page = (folder / "index.html").read_text()
    for shown in ("filter of strict", "consistency ≥ 0.3", "answer of", "7 steps of"):
        assert shown in page
    assert "filter of rewarded_soup" not in page
