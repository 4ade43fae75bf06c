"""From the answers of every evaluated model: its rewards, the prompts, and samples to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vcsoup_dist.evaluation.prompts import choose_prompts, seen_in_training
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.answers import Answers
from vcsoup_dist.records.summary import Summary
from vcsoup_dist.report.heldout import Losses
from vcsoup_dist.report.page_data import Answer, Prompts, Sample
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.report.tables import soup_label
from vcsoup_dist.workspace import Product, Workspace


def evaluations(
    recipe: Recipe,
    product: Product,
    answers: Mapping[str, Answers],
    losses: Mapping[str, Losses],
) -> list[Evaluated]:
    """The rewards of every evaluated model; ValueError unless all answered the same prompts.

    answers, losses: by name of the evaluation; not all need losses.
    """
    axes = recipe.trained_values()
    found = []
    prompts = None
    for each in product.inputs_of("evaluate"):
        own = answers[each.name]
        if prompts not in (None, own.prompt_ids):
            raise ValueError(f"{each.name} answers other prompts than the evaluation before it")
        prompts = own.prompt_ids
        weights = None if each.weights is None else dict(zip(axes, each.weights, strict=True))
        rewards = {value: own.rewards[value] for value in recipe.values}
        unfinished = 1 - float(np.mean(own.finished))
        is_soup = bool(each.inputs_of("merge"))
        found.append(
            Evaluated(
                each.name, each.method, each.seed, weights, rewards, unfinished, is_soup,
                losses.get(each.name, {}),
            )
        )  # fmt: skip
    return found


def prompt_counts(
    recipe: Recipe, workspace: Workspace, product: Product, answers: Mapping[str, Answers]
) -> list[Prompts]:
    """The evaluation prompts of each dataset."""
    pairs = {str(each.dataset): workspace.need(each) for each in product.inputs_of("read")}
    chosen = choose_prompts(pairs, recipe.evaluation.prompts)
    answered = set(next(iter(answers.values())).prompt_ids)
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


def samples(recipe: Recipe, summary: Summary, answers: Mapping[str, Answers]) -> list[Sample]:
    """The first prompts, answered by theta_0, and by each method's policies and balanced soup."""
    shown: dict[str, str] = {}
    for index, row in enumerate(summary.rows):
        balanced = any(method.balanced == index for method in summary.methods)
        if row.method is None or row.policy is not None or balanced:
            shown[row.names[0]] = soup_label(row) + (" (balanced)" if balanced else "")
    found = []
    first = next(iter(answers.values()))
    count, total = recipe.evaluation.samples, len(first.prompts)
    # Prompts are ordered by dataset: take them from all over.
    for place in np.linspace(0, total, count, endpoint=False).astype(int).tolist():
        shown_answers = []
        for name, label in shown.items():
            own = answers[name]
            rewards = {value: float(own.rewards[value][place]) for value in recipe.values}
            shown_answers.append(Answer(label, own.texts[place], rewards))
        found.append(Sample(_text(first.prompts[place]), shown_answers))
    return found


def _text(messages: Sequence[Mapping[str, str]]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{each['role']}: {each['content']}" for each in messages)
