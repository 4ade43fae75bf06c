"""What a run will read, compute and write, before it starts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.checkpoints.layout import read_layout
from vcsoup_dist.plan.products import reads, to_make
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.workspace import Product, Workspace

BYTES_PER_TOKEN = 4.0  # of English text under a subword tokenizer of usual size
ADAM_BYTES = 12  # fp32 master weight and two moments, per parameter


@dataclass(frozen=True)
class Cost:
    """Estimates; None where only the hub knows."""

    pairs: int | None
    tokens: int | None
    """Of prompts and both answers once, from the files' sizes."""
    parameters: int | None
    read_bytes: int | None
    written_bytes: int | None
    peak_disk_bytes: int | None
    """Written bytes that are there at the same time, one policy's checkpoints included."""
    free_disk_bytes: int


def estimate(recipe: Recipe, workspace: Workspace, plan: Sequence[Product]) -> Cost:
    """Cost of making what is missing."""
    missing = to_make(plan, workspace, recipe)
    sources = [
        source for product in plan if product.stage == "read" for source in product.sources.values()
    ]
    files = [Path(source.source) for source in sources if source.revision is None]
    known = len(files) == len(sources) and all(file.is_file() for file in files)
    text_bytes = sum(file.stat().st_size for file in files if file.is_file())
    parameters = _parameters(recipe)
    free = shutil.disk_usage(_existing(workspace.root)).free
    read = written = peak = None
    if parameters is not None:
        width = 2 if recipe.training.dtype == "bf16" else 4
        model = parameters * width
        policies = sum(product.stage == "train" for product in missing)
        soups = sum(product.stage == "merge" for product in missing)
        groups = len({(each.method, each.seed) for each in missing if each.stage == "merge"})
        checkpoint = parameters * ADAM_BYTES
        evaluated = sum(_models_read(each, recipe) for each in missing if each.stage == "evaluate")
        read = model * (policies + groups * len(recipe.trained_values()) + evaluated) + text_bytes
        # Two checkpoints are there while the newer one is written.
        peak = model * (policies + soups) + (2 * checkpoint if policies else 0) + 2 * text_bytes
        written = model * (policies + soups) + 2 * text_bytes
    return Cost(
        sum(map(_rows, files)) if known else None,
        int(text_bytes / BYTES_PER_TOKEN) if known else None,
        parameters,
        read,
        written,
        peak,
        free,
    )


def _models_read(evaluation: Product, recipe: Recipe) -> int:
    """theta_0 or a written soup; or all the policies of one that is not written."""
    return sum(each.stage in ("merge", "train") for each in reads(evaluation, recipe)) or 1


def _parameters(recipe: Recipe) -> int | None:
    folder = recipe.local_path(recipe.model)
    if folder is None:
        return None
    total = 0
    for spec in read_layout(folder).values():
        count = 1
        for side in spec.shape:
            count *= side
        total += count
    return total


def _rows(file: Path) -> int:
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(file).num_rows)
    with open(file, "rb") as lines:
        return sum(1 for line in lines if line.strip())


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
