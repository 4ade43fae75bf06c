"""The graph of products that a recipe asks for, and what of it must be made.

    pairs/<dataset>                      canonical pairs, training and held out
    scores/<dataset>/<value>             one reward of every training pair, and of held-out pairs
                                         where something reads it
    filtered/<method>/<value>            the pairs that a method keeps for a value
    union                                the pairs of all values, for methods that reweight them
    tokens/<dataset>                     every pair in tokens
    in_context/<method>/<dataset>        the union in tokens, where prompts say the answers' scores
    theta_0                              where the recipe has `sft`; else its model is theta_0
    reference/<dataset>                  log-probs under theta_0 of the pairs that policies read
    policies/<method>/<value>/seed-<s>   a reweighting method has <weights> in place of <value>
    logps/<method>/<value>/seed-<s>/<dataset>
                                         log-probs under a policy, where others are trained on them
    soups/<method>/seed-<s>/<weights>
    evaluation/base, evaluation/<method>/seed-<s>/<weights>
    report

A dataset is called after the value that brings it, a method after its instance in the recipe. Only
what decides a product's content is in its `made_from`; where it runs, and how often it saves, is
not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.stages import STAGES, Stage, function
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.turns import in_turns
from vcsoup_dist.workspace import Product, Workspace


@dataclass
class Graph:
    """A recipe, and the products that it asks for so far, each after its inputs."""

    recipe: Recipe
    hashes: Hashes
    products: dict[str, Product] = field(default_factory=dict)
    """By name."""

    def __getitem__(self, name: str) -> Product:
        return self.products[name]

    def of(self, stage: str) -> list[Product]:
        """The products of a stage."""
        return [each for each in self.products.values() if each.stage == stage]

    def add(self, name: str, stage: str, made_from: dict[str, Any], **more: Any) -> Product:
        """A product with the stage's format and command; `more` are fields of `Product`."""
        row = STAGES[stage]
        named = more.get("value") or name
        self.products[name] = Product(
            name,
            stage,
            {"format": row.format, **made_from},
            command=row.command.format(value=named),
            **more,
        )
        return self.products[name]


def make_plan(recipe: Recipe, hashes: Hashes) -> list[Product]:
    """All products of a recipe, each after its inputs.

    Raises UserError where a model or file that the recipe names is not there.
    """
    graph = Graph(recipe, hashes)
    for stage in STAGES.values():
        function(stage.products)(graph)
    return list(graph.products.values())


def to_make(plan: Iterable[Product], workspace: Workspace, recipe: Recipe) -> list[Product]:
    """The products that must be made now, in the plan's order.

    Wanted is whatever `keep` does not give up; anything else only where something that must be
    made reads it, and as much of it.
    """
    due: list[Product] = []
    needed: dict[str, dict[str, Product]] = {}  # by name, what it must cover
    for product in reversed(list(plan)):
        if not is_kept(product, recipe):
            if product.name not in needed:
                continue
            if product.covers:
                product = replace(product, covers=needed[product.name])
        if not workspace.is_made(product):
            due.append(product)
            for each in reads(product, recipe):
                needed.setdefault(each.name, {}).update(each.covers)
    return due[::-1]


def stage_turns(due: Sequence[Product], recipe: Recipe) -> list[tuple[Stage, list[Product]]]:
    """Stages in the order in which they make what is due, each with what it makes then."""
    turns = in_turns(due, STAGES, lambda each: each.stage, lambda each: reads(each, recipe))
    return [(STAGES[stage], products) for stage, products in turns]


def is_kept(product: Product, recipe: Recipe) -> bool:
    """Whether a product stays, once all that reads it is made."""
    key = STAGES[product.stage].kept_by
    return key is None or bool(getattr(recipe.keep, key))


def reads(product: Product, recipe: Recipe) -> list[Product]:
    """The products that making this one reads: its inputs, or what stands in for them, and those
    that say how much of it is asked for.

    An evaluation is made from a soup either way; where soups are not kept, it sums the policies
    itself.
    """
    found: dict[str, Product] = {}
    for each in product.inputs:
        virtual = STAGES[each.stage].is_virtual and not is_kept(each, recipe)
        found |= {one.name: one for one in (each.inputs if virtual else (each,))}
    found |= {each.name: each for each in product.covers.values()}
    return list(found.values())
