"""The door of souping: all missing soups of one method and seed in one pass over its policies.

One process makes and publishes them, or ranks write a share each (`make_share`) and one process
publishes what they have written (`publish_shares`). All work in the same folder, that of the first
missing soup, so one goes on from what others have left.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence

from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.souping.output.targets import Placement
from vcsoup_dist.souping.output.work_folder import door, writers
from vcsoup_dist.souping.output.write import finish, missing_ranks, write_soups
from vcsoup_dist.souping.plan import MergePlan, plan_merge
from vcsoup_dist.souping.progress_text import last_line, not_done
from vcsoup_dist.workspace import Draft, Product, Workspace


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make soups."""
    for group in _groups(products):
        with contextlib.ExitStack() as stack:
            drafts = [stack.enter_context(workspace.publishing(product)) for product in group]
            _write(recipe, workspace, drafts, rank=0, world_size=1, publishing=True)


def make_share(
    recipe: Recipe, workspace: Workspace, products: Sequence[Product], rank: int, world_size: int
) -> None:
    """Write one rank's share of soups, and publish nothing."""
    for group in _groups(products):
        with workspace.sharing(group) as drafts:
            if drafts:
                _write(recipe, workspace, drafts, rank, world_size, publishing=False)


def publish_shares(
    recipe: Recipe, workspace: Workspace, products: Sequence[Product], world_size: int
) -> None:
    """Publish soups of which all ranks have written their share.

    UserError that names the ranks which are still at work, or have not written theirs.
    """
    for group in _groups(products):
        title = _title(group)
        plan, where = _plan(recipe, workspace, [workspace.draft(product) for product in group])
        with door(where.work, make=False):
            at_work = writers(where.work)
        if at_work:
            raise UserError(
                f"{title}: still at work: {'; '.join(at_work)}; publish them afterwards"
            )
        with contextlib.ExitStack() as stack:
            for product in group:
                stack.enter_context(workspace.publishing(product))
            if all(map(workspace.is_made, group)):
                continue  # another was faster
            # What they have written may have been removed meanwhile.
            if missing_ranks(plan, where, world_size) or not finish(plan, where, overwrite=True):
                missing = missing_ranks(plan, where, world_size)
                raise UserError(f"{title}: {not_done(missing, world_size)}")
        log.info("%s: %d, published", title, len(group))


def _groups(products: Sequence[Product]) -> Iterator[list[Product]]:
    for _, group in itertools.groupby(products, key=lambda each: (each.method, each.seed)):
        yield list(group)


def _title(group: Sequence[Product]) -> str:
    return f"soups of {group[0].method}, seed {group[0].seed}"


def _plan(
    recipe: Recipe, workspace: Workspace, drafts: Sequence[Draft]
) -> tuple[MergePlan, Placement]:
    """One pass that writes below one folder, from where each soup goes to its own draft."""
    products = [draft.product for draft in drafts]
    policies = products[0].inputs_of("train")
    plan = plan_merge(
        [workspace.need(policy) for policy in policies],
        {product.name.rsplit("/", 1)[1]: product.weights or () for product in products},
        names=[policy.value or policy.name for policy in policies],
        shard_size=recipe.soup.shard_size,
    )
    targets = {soup: draft.output for soup, draft in zip(plan.soups, drafts, strict=True)}
    return plan, Placement(drafts[0].scratch / "soups", targets)


def _write(
    recipe: Recipe,
    workspace: Workspace,
    drafts: Sequence[Draft],
    rank: int,
    world_size: int,
    publishing: bool,
) -> None:
    plan, where = _plan(recipe, workspace, drafts)
    began = time.monotonic()
    title = _title([draft.product for draft in drafts])
    if not publishing:
        title += f", rank {rank} of {world_size}"
    written = write_soups(
        plan,
        where,
        memory=recipe.soup.memory,
        rank=rank,
        world_size=world_size,
        overwrite=True,
        title=title,
        publishing=publishing,
    )
    seconds = time.monotonic() - began
    said = last_line(written, seconds) if written.soups else "nothing is left to write"
    log.info("%s: %d, %s", title, len(plan.soups), said)
