"""The report: what all stages left, as a page, plots, tables and numbers."""

from __future__ import annotations

from collections.abc import Sequence

from vcsoup_dist.in_context.targets import targets_of
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.answers import Answers
from vcsoup_dist.report.answer_figures import answer_figures, answer_warnings
from vcsoup_dist.report.answer_tables import answers_as_csv, answers_as_text
from vcsoup_dist.report.answers import evaluations, prompt_counts, samples
from vcsoup_dist.report.costs import costs
from vcsoup_dist.report.counts import (
    filters,
    pairs_read,
    pairs_scored,
    trained,
)
from vcsoup_dist.report.curves import curves
from vcsoup_dist.report.facts import commands_for, facts, notes
from vcsoup_dist.report.heldout import heldout_losses
from vcsoup_dist.report.limits import limits
from vcsoup_dist.report.page_data import ReportData
from vcsoup_dist.report.pair_flow import pair_flows
from vcsoup_dist.report.stage_times import stage_times
from vcsoup_dist.report.statistics.summarise import summarise
from vcsoup_dist.report.tables import as_csv, as_text
from vcsoup_dist.workspace import Product, Workspace


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Write `report/`: index.html, the plots, and tables as text, CSV and JSON."""
    from vcsoup_dist.report.page import render
    from vcsoup_dist.report.plots import figures
    from vcsoup_dist.report.plots.curve_plot import curve_plot

    (product,) = products
    answers = {
        each.name: Answers.read(workspace.need(each)) for each in product.inputs_of("evaluate")
    }
    summary = summarise(
        evaluations(recipe, product, answers, heldout_losses(recipe, workspace, product)),
        resamples=recipe.evaluation.bootstrap,
        confidence=recipe.evaluation.confidence,
    )
    figures_of_answers = answer_figures(summary, answers)
    pictures = {
        "front.png": figures.front_plot(summary),
        "hypervolume.png": figures.hypervolume_plot(summary),
    }
    if found := curves(workspace, product):
        pictures["curves.png"] = curve_plot(found)
    if summary.edges:
        pictures["edges.png"] = figures.edge_plot(summary)
    prompts = prompt_counts(recipe, workspace, product, answers)
    targets = targets_of(workspace, product.inputs_of("evaluate"))
    filtered = filters(recipe, workspace, product)
    data = ReportData(
        title=recipe.name,
        facts=facts(recipe, workspace, product, filtered, targets),
        notes=[
            *limits(summary, recipe.methods),
            *notes(recipe, prompts, targets),
            *answer_warnings(summary, figures_of_answers),
        ],
        summary=summary,
        figures=figures_of_answers,
        front_plot=pictures["front.png"],
        hypervolume_plot=pictures["hypervolume.png"],
        edge_plot=pictures.get("edges.png"),
        curve_plot=pictures.get("curves.png"),
        costs=costs(workspace, product),
        pairs=[pairs_read(workspace, each) for each in product.inputs_of("read")],
        scores=pairs_scored(workspace, product),
        filters=filtered,
        flows=pair_flows(recipe, workspace, product),
        stage_times=stage_times(workspace, product),
        trained=[trained(workspace, each) for each in product.inputs_of("train")],
        prompts=prompts,
        samples=samples(recipe, summary, answers),
        commands=commands_for(product),
        recipe=(workspace.root / "recipe.yaml").read_text(),
    )
    with workspace.publishing(product) as draft:
        for name, png in pictures.items():
            (draft.output / name).write_bytes(png)
        (draft.output / "index.html").write_text(render(data), encoding="utf-8")
        (draft.output / "table.csv").write_text(as_csv(summary))
        text = as_text(summary) + "\n" + answers_as_text(summary, figures_of_answers)
        (draft.output / "table.txt").write_text(text)
        (draft.output / "answers.csv").write_text(answers_as_csv(summary, figures_of_answers))
        summary.write(draft.output)
        figures_of_answers.write(draft.output)
