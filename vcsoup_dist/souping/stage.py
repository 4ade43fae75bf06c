"""The door of souping: all missing soups of one method and seed in one pass over its policies."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Sequence

from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.souping.preflight import plan_merge
from vcsoup_dist.souping.screen import last_line
from vcsoup_dist.souping.write import placement, write_soups
from vcsoup_dist.workspace import Product, Workspace


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make soups."""
    for _, group in itertools.groupby(products, key=lambda each: (each.method, each.seed)):
        _make_together(recipe, workspace, list(group))


def _make_together(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    policies = products[0].inputs_of("train")
    plan = plan_merge(
        [workspace.need(policy) for policy in policies],
        {product.name.rsplit("/", 1)[1]: product.weights or () for product in products},
        names=[policy.value or policy.name for policy in policies],
        shard_size=recipe.soup.shard_size,
    )
    with contextlib.ExitStack() as stack:
        drafts = [stack.enter_context(workspace.making(product)) for product in products]
        # One pass writes all soups below one folder, from where each goes to its own draft.
        where = placement(plan, drafts[0].scratch / "soups", inside=True)
        began = time.monotonic()
        title = f"soups of {products[0].method}"
        written = write_soups(plan, where, memory=recipe.soup.memory, overwrite=True, title=title)
        for draft, target in zip(drafts, where.targets.values(), strict=True):
            shutil.rmtree(draft.output)
            target.rename(draft.output)
        where.out.rmdir()
    log.info("%s: %d, %s", title, len(plan.soups), last_line(written, time.monotonic() - began))
