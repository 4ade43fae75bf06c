"""Souping: all missing soups of one method and seed in one pass over its policies.

Those beyond the simplex have a pass of their own, which reads theta_0 too.

One process makes and publishes them, or ranks write a share each (`make_share`) and one process
publishes what they have written (`publish_shares`). All work in the same folder, that of the first
missing soup, so one resumes what others have left.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.options import MergeOptions
from vcsoup_dist.souping.output.state import missing_ranks, publish_soups
from vcsoup_dist.souping.output.work_folder import active_writers, locked
from vcsoup_dist.souping.output.write import write_soups
from vcsoup_dist.souping.passes import has_base, passes
from vcsoup_dist.souping.plan import plan_merge
from vcsoup_dist.souping.progress_text import missing_line, report_line
from vcsoup_dist.theta_0 import find_theta_0, local_folder
from vcsoup_dist.workspace import Draft, Product, Workspace


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make soups."""
    for group in passes(products):
        with contextlib.ExitStack() as stack:
            drafts = [stack.enter_context(workspace.publishing(product)) for product in group]
            _write(_run(workspace, drafts, _options(recipe, workspace, group)))


def make_share(
    recipe: Recipe, workspace: Workspace, products: Sequence[Product], rank: int, world_size: int
) -> None:
    """Write one rank's share of soups, and publish nothing."""
    for group in passes(products):
        options = _options(recipe, workspace, group)
        title = f"{options.title}, rank {rank} of {world_size}"
        options = replace(options, rank=rank, world_size=world_size, publish=False, title=title)
        with workspace.sharing(group) as drafts:
            if drafts:
                _write(_run(workspace, drafts, options))


def publish_shares(
    recipe: Recipe, workspace: Workspace, products: Sequence[Product], world_size: int
) -> None:
    """Publish soups of which all ranks have written their share.

    UserError that names the ranks which are still at work, or have not written theirs.
    """
    for group in passes(products):
        drafts = [workspace.draft(product) for product in group]
        options = replace(_options(recipe, workspace, group), world_size=world_size)
        run, title = _run(workspace, drafts, options), options.title
        with locked(run.work, make=False):
            at_work = active_writers(run.work)
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
            if missing_ranks(run) or not publish_soups(run):
                raise UserError(f"{title}: {missing_line(missing_ranks(run), world_size)}")
        log.info("%s: %d, published", title, len(group))


def _options(recipe: Recipe, workspace: Workspace, group: Sequence[Product]) -> MergeOptions:
    first = group[0]
    title = f"soups of {first.method}, seed {first.seed}"
    base = None
    if has_base(first):
        base, title = local_folder(find_theta_0(first, workspace)), f"{title}, beyond the simplex"
    return MergeOptions(
        base=base,
        base_name="theta_0",
        shard_size=recipe.soup.shard_size,
        memory=recipe.soup.memory,
        overwrite=True,
        title=title,
    )


def _run(workspace: Workspace, drafts: Sequence[Draft], options: MergeOptions) -> MergeRun:
    """One pass that writes below one folder, from where each soup goes to its own draft."""
    products = [draft.product for draft in drafts]
    policies = products[0].inputs_of("train")
    plan = plan_merge(
        [workspace.need(policy) for policy in policies],
        {product.name.rsplit("/", 1)[1]: product.weights or () for product in products},
        [policy.value or policy.name for policy in policies],
        options,
    )
    targets = {soup: draft.output for soup, draft in zip(plan.soups, drafts, strict=True)}
    return MergeRun(plan, drafts[0].scratch / "soups", targets, options)


def _write(run: MergeRun) -> None:
    began = time.monotonic()
    report = write_soups(run)
    seconds = time.monotonic() - began
    result = report_line(report, seconds) if report.soups else "nothing is left to write"
    log.info("%s: %d, %s", run.options.title, len(run.plan.soups), result)
