"""Making products: which stage's door makes which, in what order."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence

from vcsoup_dist.launch.stop_signals import raise_if_stop_requested
from vcsoup_dist.pipeline.history import recorded
from vcsoup_dist.pipeline.products import STAGES, to_make
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.workspace import Product, Workspace

Door = Callable[[Recipe, Workspace, Sequence[Product]], None]

DOORS = {
    "read": "vcsoup_dist.scoring.stage:read",
    "score": "vcsoup_dist.scoring.stage:score",
    "filter": "vcsoup_dist.consistency.stage:make",
    "warmup": "vcsoup_dist.training.stage:make_theta_0",
    "reference": "vcsoup_dist.training.stage:make_references",
    "train": "vcsoup_dist.training.stage:make_policies",
    "merge": "vcsoup_dist.souping.stage:make",
    "evaluate": "vcsoup_dist.evaluation.stage:make",
    "report": "vcsoup_dist.report.stage:make",
}


def make_missing(
    recipe: Recipe,
    workspace: Workspace,
    plan: Sequence[Product],
    stages: Sequence[str] = STAGES,
    only: Callable[[Product], bool] = lambda product: True,
) -> int:
    """Make the missing products of `stages`, stage by stage; returns how many were made.

    A stage that is imported only here costs nothing where it has nothing to do.
    """
    missing = to_make(plan, workspace, recipe)
    if stages != STAGES:  # asked for by name: also what nothing else needs any more
        missing = [each for each in plan if not workspace.is_made(each)]
        if "train" in stages:
            missing = with_their_inputs(missing, only)
    made = 0
    for stage in stages:
        due = [
            product
            for product in missing
            if product.stage == stage and only(product) and not workspace.is_made(product)
        ]
        if not due:
            continue
        began = time.monotonic()
        log.info("== %s: %d to make", stage, len(due))
        module, _, name = DOORS[stage].partition(":")
        with recorded(workspace.root, stage, due):
            door: Door = getattr(importlib.import_module(module), name)
            door(recipe, workspace, due)
        made += len(due)
        log.info("== %s: done in %.1f s", stage, time.monotonic() - began)
        raise_if_stop_requested()
    return made


def with_their_inputs(missing: Sequence[Product], only: Callable[[Product], bool]) -> list[Product]:
    """The policies asked for, and what they need of theta_0 and the references."""
    policies = [each for each in missing if each.stage == "train" and only(each)]
    needed = {each.name for policy in policies for each in policy.inputs}
    return [
        each for each in missing if each.stage in ("warmup", "reference") and each.name in needed
    ] + policies
