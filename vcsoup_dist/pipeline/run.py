"""What makes the missing products, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from vcsoup_dist.launch.stop_signals import raise_if_stop_requested
from vcsoup_dist.pipeline.gpus import gpus_asked
from vcsoup_dist.pipeline.graph import stage_turns, to_make
from vcsoup_dist.pipeline.history import recorded
from vcsoup_dist.pipeline.stages import STAGES, function, stages_of
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.workspace import Product, Workspace


def make_missing(
    recipe: Recipe,
    workspace: Workspace,
    plan: Sequence[Product],
    command: str | None = None,
    only: Callable[[Product], bool] = lambda product: True,
) -> int:
    """Make what is missing, stage by stage; returns how many products were made.

    `command`: make just what this `vcsoup` command makes, also what nothing reads any more, and
    first what its stages take along. `only` chooses among the command's own products.
    """
    workspace.look_afresh(plan)
    if command is None:
        missing = to_make(plan, workspace, recipe)
    else:
        missing = due_by_command(
            [each for each in plan if not workspace.is_made(each)], command, only
        )
    made = 0
    for stage, products in stage_turns(missing, recipe):
        due = [product for product in products if not workspace.is_made(product)]
        if not due:
            continue
        began = time.monotonic()
        log.info("== %s: %d to make", stage.name, len(due))
        with recorded(workspace.root, stage.name, due, gpus_asked(recipe, stage)):
            # A stage with nothing to do is not even imported.
            function(stage.make)(recipe, workspace, due)
        made += len(due)
        log.info("== %s: done in %.1f s", stage.name, time.monotonic() - began)
        raise_if_stop_requested()
    return made


def due_by_command(
    missing: Sequence[Product], command: str, only: Callable[[Product], bool]
) -> list[Product]:
    """Of the missing products those that a command makes, and what its stages take along.

    Not those that read what is still to be made by a later stage: the command comes again then.
    """
    stages = stages_of(command)
    names = {stage.name for stage in stages}
    along = {name for stage in stages for name in stage.along} - names
    own = [each for each in missing if each.stage in names and only(each)]
    lacking = {each.name for each in missing}
    for each in [one for one in own if _comes_again(one, lacking)]:
        log.info("%s waits for what a later stage makes; run this command again then", each.name)
        own.remove(each)
    needed = {each.name for product in own for each in product.inputs if each.stage in along}
    return [each for each in missing if each.name in needed] + own


def _comes_again(product: Product, lacking: Collection[str]) -> bool:
    """Whether it reads something missing that a stage after its own makes."""
    order = list(STAGES)
    place = order.index(product.stage)
    return any(each.name in lacking and order.index(each.stage) > place for each in product.inputs)
