"""The door of the report: gathers what all stages left, and writes page, table and numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from vcsoup_dist import __version__
from vcsoup_dist.evaluation.actors import ANSWERS
from vcsoup_dist.evaluation.prompts import choose_prompts, seen_in_training
from vcsoup_dist.recipe import CallableReward, ClassifierReward, Recipe, Sft
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.report.counts import (
    agreement,
    consistency_plots,
    filter_reports,
    pairs_read,
    pairs_scored,
    patterns,
    trained,
)
from vcsoup_dist.report.evaluated import Evaluated
from vcsoup_dist.report.page_data import (
    Answer,
    Prompts,
    ReportData,
    Sample,
)
from vcsoup_dist.report.summary import Row, Summary, summarise
from vcsoup_dist.report.summary_files import as_csv, as_json
from vcsoup_dist.workspace import Product, Workspace

PACKAGES = ("torch", "transformers", "deepspeed", "ray")


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Write `report/`: index.html, the plots, table.txt, table.csv and summary.json."""
    from vcsoup_dist.report import plots
    from vcsoup_dist.report.page import render

    (product,) = products
    tables = {
        each.name: pq.read_table(workspace.need(each) / ANSWERS)
        for each in product.inputs_of("evaluate")
    }
    summary = summarise(
        _evaluated(recipe, product, tables),
        resamples=recipe.evaluation.bootstrap,
        confidence=recipe.evaluation.confidence,
    )
    pictures = {
        "front.png": plots.front_plot(summary),
        "hypervolume.png": plots.hypervolume_plot(summary),
    }
    if summary.edges:
        pictures["edges.png"] = plots.edge_plot(summary)
    prompts = _prompts(recipe, workspace, product, tables)
    filtered = filter_reports(recipe, workspace, product)
    data = ReportData(
        title=recipe.name,
        facts=_facts(recipe, workspace, product),
        notes=_notes(recipe, prompts),
        summary=summary,
        front_plot=pictures["front.png"],
        hypervolume_plot=pictures["hypervolume.png"],
        edge_plot=pictures.get("edges.png"),
        pairs=[pairs_read(workspace, each) for each in product.inputs_of("read")],
        scores=pairs_scored(workspace, product),
        patterns=[patterns(value, reports) for value, reports in filtered.items()],
        agreements=[agreement(value, reports) for value, reports in filtered.items()],
        consistency_plots=consistency_plots(workspace, product),
        trained=[trained(workspace, each) for each in product.inputs_of("train")],
        prompts=prompts,
        samples=_samples(recipe, summary, tables),
        commands=commands_for(product),
        recipe=(workspace.root / "recipe.yaml").read_text(),
    )
    with workspace.publishing(product) as draft:
        for name, png in pictures.items():
            (draft.output / name).write_bytes(png)
        (draft.output / "index.html").write_text(render(data), encoding="utf-8")
        (draft.output / "table.csv").write_text(as_csv(summary))
        (draft.output / "table.txt").write_text(_table(summary))
        content = as_json(summary) | {"headline": _headline(summary)}
        (draft.output / "summary.json").write_text(json.dumps(content, indent=1) + "\n")


def _evaluated(recipe: Recipe, product: Product, tables: Mapping[str, Any]) -> list[Evaluated]:
    axes = recipe.trained_values()
    found = []
    prompts = None
    for each in product.inputs_of("evaluate"):
        table = tables[each.name]
        ids = table["prompt_id"].to_pylist()
        if prompts not in (None, ids):
            raise ValueError(f"{each.name} answers other prompts than the evaluation before it")
        prompts = ids
        weights = None if each.weights is None else dict(zip(axes, each.weights, strict=True))
        rewards = {value: table[f"reward_{value}"].to_numpy() for value in recipe.values}
        unfinished = 1 - float(np.mean(table["finished"].to_numpy(zero_copy_only=False)))
        found.append(Evaluated(each.name, each.method, each.seed, weights, rewards, unfinished))
    return found


def _prompts(
    recipe: Recipe, workspace: Workspace, product: Product, tables: Mapping[str, Any]
) -> list[Prompts]:
    pairs = {str(each.dataset): workspace.need(each) for each in product.inputs_of("read")}
    chosen = choose_prompts(pairs, recipe.evaluation.prompts)
    answered = set(next(iter(tables.values()))["prompt_id"].to_pylist())
    seen = seen_in_training(chosen, pairs)
    found = []
    for dataset in pairs:
        own = [prompt for prompt in chosen if prompt.dataset == dataset]
        trained = set(seen.get(dataset, []))
        found.append(
            Prompts(
                dataset=dataset,
                prompts=sum(prompt.id in answered for prompt in own),
                left_out=sum(prompt.id not in answered for prompt in own),
                in_training=[_text(each.messages) for each in chosen if each.id in trained],
            )
        )
    return found


def _samples(recipe: Recipe, summary: Summary, tables: Mapping[str, Any]) -> list[Sample]:
    """The first prompts, answered by theta_0, and by each method's policies and balanced soup."""
    shown: dict[str, str] = {}
    for index, row in enumerate(summary.rows):
        vertex = row.weights is not None and max(row.weights.values()) == 1
        balanced = any(method.balanced == index for method in summary.methods)
        if row.method is None or vertex or balanced:
            shown[row.names[0]] = soup_label(row) + (" (balanced)" if balanced else "")
    samples = []
    first = next(iter(tables.values()))
    # Prompts are ordered by dataset: take them from all over.
    places = np.linspace(0, len(first), recipe.evaluation.samples, endpoint=False).astype(int)
    for place in places:
        answers = []
        for name, label in shown.items():
            row = tables[name].slice(int(place), 1).to_pylist()[0]
            rewards = {value: row[f"reward_{value}"] for value in recipe.values}
            answers.append(Answer(label, row["answer"], rewards))
        samples.append(Sample(_text(first["prompt"][int(place)].as_py()), answers))
    return samples


def _facts(recipe: Recipe, workspace: Workspace, product: Product) -> dict[str, str]:
    rewards = []
    for name in recipe.values:
        judge = recipe.judge_of(name)
        kind = (
            judge.classifier
            if isinstance(judge, ClassifierReward)
            else judge.callable
            if isinstance(judge, CallableReward)
            else "columns"
        )
        other = " (took no part in filtering)" if recipe.values[name].judge else ""
        rewards.append(f"{name}: {kind}{other}")
    steps = {
        TrainingSummary.read(workspace.need(each)).steps for each in product.inputs_of("train")
    }
    return {
        "base model": recipe.model,
        **({"theta_0": _sft_text(recipe, workspace, product)} if recipe.sft else {}),
        "judged by": "; ".join(rewards),
        "methods": ", ".join(recipe.methods),
        "filter of vc_soup": _filter_text(recipe),
        "training": f"{recipe.training.objective}, {_range(steps)} steps of "
        f"{recipe.training.pairs_per_step} pairs, learning rate {recipe.training.learning_rate:g}",
        "seeds": ", ".join(map(str, recipe.seeds)),
        "versions": ", ".join(
            [f"vcsoup_dist {__version__}", *(f"{name} {version(name)}" for name in PACKAGES)]
        ),
    }


def _sft_text(recipe: Recipe, workspace: Workspace, product: Product) -> str:
    (theta_0,) = product.inputs_of("sft")
    sft = recipe.sft or Sft()
    steps = TrainingSummary.read(workspace.need(theta_0)).steps
    return (
        f"base model after {steps} steps of sft on {sft.pairs_per_step} chosen answers "
        f"each, learning rate {sft.learning_rate:g}"
    )


def _filter_text(recipe: Recipe) -> str:
    rule = recipe.consistency.rule
    bound = {
        "threshold": f"consistency ≥ {recipe.consistency.threshold:g}",
        "ratio": f"the best {recipe.consistency.ratio or 0:.0%} by consistency",
        "all_positive": "all gaps positive",
        "random": f"a random {recipe.consistency.ratio or 0:.0%}",
    }[rule]
    return f"{bound}, gaps scaled by {recipe.consistency.normalisation}"


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _notes(recipe: Recipe, prompts: Sequence[Prompts]) -> list[str]:
    notes = []
    if all(value.judge is None for value in recipe.values.values()):
        notes.append(
            "The soups are judged by the rewards that filtered the pairs, and a filter can overfit "
            "its own rewards; name a `judge` per value for an independent view."
        )
    overlap = sum(len(each.in_training) for each in prompts)
    if overlap:
        notes.append(f"{overlap} evaluation prompts occur in training data; they are listed below.")
    if len(recipe.seeds) == 1:
        notes.append(
            "There is one seed: the intervals are over prompts and do not show how much another "
            "training run would differ."
        )
    return notes


def commands_for(product: Product) -> list[str]:
    """The commands that make a product: all at once, or stage by stage."""
    after: dict[str, set[str]] = {}
    seen: set[str] = set()

    def visit(each: Product) -> None:
        after.setdefault(each.command, set()).update(one.command for one in each.inputs)
        seen.add(each.name)
        for one in each.inputs:
            if one.name not in seen:
                visit(one)

    visit(product)
    order = TopologicalSorter({each: reads - {each} for each, reads in after.items()})
    stages = [f"vcsoup {each} recipe.yaml" for each in order.static_order()]
    return ["vcsoup run recipe.yaml   # or, stage by stage:", *stages]


def _headline(summary: Summary) -> list[str]:
    """The result in a few lines for the terminal."""
    lines = [
        f"hypervolume of {each.method}: {each.hypervolume:.4f}"
        + (f" ± {each.hypervolume_spread:.4f} over seeds" if each.hypervolume_spread else "")
        for each in summary.methods
    ]
    reference = ", ".join(f"{value} {x:.4g}" for value, x in summary.scale.reference.items())
    lines.append(f"(of values scaled to 0..1 over all rows; reference point: {reference})")
    best = summary.rows[summary.balanced]
    lines.append(f"most balanced: {soup_label(best)}")
    return lines


def _table(summary: Summary) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("soup")
    for value in summary.values:
        table.add_column(value, justify="right")
    table.add_column("")
    for index, row in enumerate(summary.rows):
        cells = [f"{c.mean:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in row.cells.values()]
        marks = [
            "front" if row.on_front else "",
            "front of its method" if row.on_method_front and not row.on_front else "",
            "balanced" if index == summary.balanced else "",
        ]
        table.add_row(soup_label(row), *cells, ", ".join(mark for mark in marks if mark))
    out = io.StringIO()
    Console(file=out, width=60 + 30 * len(summary.values), highlight=False, markup=False).print(
        table
    )
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def soup_label(row: Row) -> str:
    """A row as a reader should see it."""
    if row.weights is None:
        return "theta_0"
    parts = [f"{weight:.3g} {value}" for value, weight in row.weights.items() if weight]
    return f"{row.method}: {' + '.join(parts)}"


def _text(messages: Sequence[Mapping[str, str]]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{each['role']}: {each['content']}" for each in messages)
