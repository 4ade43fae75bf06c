"""What a run no longer needs, and its removal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from vcsoup_dist.pipeline.graph import is_kept, reads, to_make
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.workspace import Product, Workspace


def removable(
    recipe: Recipe, workspace: Workspace, plan: Sequence[Product]
) -> Iterator[tuple[Path, str]]:
    """Folders that may go, each with the reason.

    Checkpoints and drafts of finished products; products that the recipe no longer asks for, or
    that were made from something else; and what `keep` gives up, once nothing needs it. What is
    being made just now stays.
    """
    names = {product.name: product for product in plan}
    unfinished = to_make(plan, workspace, recipe)
    needed = {each.name for product in unfinished for each in reads(product, recipe)}
    for marker in sorted((workspace.root / "work").rglob("fingerprint")):
        name = str(marker.parent.relative_to(workspace.root / "work"))
        if workspace.is_being_made(name):
            continue
        product = names.get(name)
        if product is None or marker.read_text() != product.fingerprint:
            yield marker.parent, "draft of something else"
        elif workspace.is_made(product):
            has_checkpoints = any((marker.parent / "scratch").glob("step-*"))
            if not (has_checkpoints and recipe.keep.checkpoints):
                yield marker.parent, "scratch of a finished product"
        elif not is_kept(product, recipe) and name not in needed:
            yield marker.parent, "draft of what keep gives up"
    for record in sorted(workspace.root.rglob("product.json")):
        name = str(record.parent.relative_to(workspace.root))
        if name.startswith("work/") or workspace.is_being_made(name):
            continue
        product = names.get(name)
        if product is None:
            yield record.parent, "not asked for by the recipe"
        elif not workspace.is_begun(product):
            yield record.parent, "made from something else"
        elif not is_kept(product, recipe) and name not in needed:
            yield record.parent, f"keep says it may go ({product.stage})"


def size_of(folder: Path) -> int:
    """Bytes below a folder."""
    return sum(
        os.lstat(os.path.join(parent, name)).st_size
        for parent, _, files in os.walk(folder)
        for name in files
    )


def remove(workspace: Workspace, folder: Path) -> bool:
    """Remove a folder of `removable`; False where somebody has come to work on its product.

    A product stops being one before its files go.
    """
    name = str(folder.relative_to(workspace.root)).removeprefix("work/")
    with workspace.unused(name) as unused:
        if unused:
            (folder / "product.json").unlink(missing_ok=True)
            shutil.rmtree(folder)
    return unused
