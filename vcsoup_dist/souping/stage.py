"""The door of souping: all missing soups of one method and seed in one pass over its policies."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Sequence

from vcsoup_dist import __version__
from vcsoup_dist.progress import log, progress
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.souping.card import weights_hash, write_card
from vcsoup_dist.souping.merge import merge
from vcsoup_dist.workspace import Product, Workspace


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make soups."""
    for _, group in itertools.groupby(products, key=lambda each: (each.method, each.seed)):
        _make_together(recipe, workspace, list(group))


def _make_together(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    policies = products[0].inputs_of("train")
    folders = [workspace.need(policy) for policy in policies]
    names = [policy.value or policy.name for policy in policies]
    soups = {product.name.rsplit("/", 1)[1]: product.weights or () for product in products}
    with contextlib.ExitStack() as stack:
        drafts = [stack.enter_context(workspace.making(product)) for product in products]
        # One pass writes all soups below one folder, from where each goes to its own draft.
        together = drafts[0].scratch / "soups"
        shutil.rmtree(together, ignore_errors=True)
        together.mkdir()
        sources = dict(zip(names, map(weights_hash, folders), strict=True))
        size = sum(
            file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")
        )
        total = size * (1 + len(soups) / len(folders))
        title = f"soups of {products[0].method}"
        with progress(title, total / 1e6, "MB") as advance:
            report = merge(
                folders,
                soups,
                together,
                policy_names=names,
                shard_size=recipe.soup.shard_size,
                memory=recipe.soup.memory,
                on_bytes=lambda count: advance(count / 1e6),
            )
        for draft, (name, weights) in zip(drafts, soups.items(), strict=True):
            write_card(
                together / name,
                weights=dict(zip(names, weights, strict=True)),
                sources=sources,
                version=__version__,
            )
            shutil.rmtree(draft.output)
            (together / name).rename(draft.output)
        log.info(
            "%s: %d soups of %d tensors, %.3f GB read, %.3f GB written",
            title,
            len(soups),
            report.tensors,
            report.bytes_read / 1e9,
            report.bytes_written / 1e9,
        )
