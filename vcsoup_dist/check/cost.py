"""What a run will read, compute and write, before it starts."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.checkpoints.sources import open_source
from vcsoup_dist.errors import UserError
from vcsoup_dist.pipeline.graph import reads, to_make
from vcsoup_dist.pipeline.stages import STAGES, function
from vcsoup_dist.preferences.formats import detect_format
from vcsoup_dist.preferences.pair import BadRow
from vcsoup_dist.preferences.row_files import count_rows, read_file
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.souping.passes import has_base, passes
from vcsoup_dist.training.deepspeed_config import (
    device_of,
    fill_deepspeed_config,
    find_deepspeed_config,
)
from vcsoup_dist.training.memory import (
    TrainingMemory,
    can_use_nvme,
    estimate_memory,
    has_gpu,
    model_size,
)
from vcsoup_dist.workspace import Product, Workspace

BYTES_PER_TOKEN = 4.0  # of English text under a subword tokenizer of usual size
ADAM_BYTES = 12  # fp32 master weight and two moments, per parameter


@dataclass(frozen=True)
class Cost:
    """Estimates; None where only the hub knows, or a file's rows are no pairs yet."""

    pairs: int | None
    tokens: int | None
    """Of prompts and both answers once, from the files' sizes."""
    parameters: int | None
    read_bytes: int | None
    written_bytes: int | None
    peak_disk_bytes: int | None
    """Written bytes that are there at the same time, one policy's checkpoints included."""
    free_disk_bytes: int


@dataclass(frozen=True)
class TrainingNeeds:
    """What a policy's training takes of this machine."""

    config: str
    ranks: int
    on_gpus: bool
    memory: TrainingMemory
    host_bytes: int
    """What is needed of this machine's memory; without GPUs the ranks' parts too."""
    machine_bytes: int
    """The memory it has."""
    warnings: list[str]


def estimate_training(recipe: Recipe) -> TrainingNeeds | None:
    """Memory of training, or None where only the hub knows the model. Imports DeepSpeed.

    Raises UserError where the DeepSpeed configuration does not fit the recipe.
    """
    training, ranks = recipe.training, recipe.launch.ranks
    file = find_deepspeed_config(recipe)
    config = fill_deepspeed_config(file, training, ranks)
    folder = recipe.local_path(recipe.model)
    if folder is None:
        return None
    memory = estimate_memory(model_size(folder), config, training, ranks, nodes=1)
    on_gpus = has_gpu()
    host = memory.host if on_gpus else memory.host + ranks * memory.gpu
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    warnings = []
    if host > machine:
        warnings.append(
            f"training needs about {host / 2**30:.1f} GiB of host memory, this machine has "
            f"{machine / 2**30:.1f}"
        )
    if "nvme" in (device_of(config, "param"), device_of(config, "optimizer")):
        if not can_use_nvme():
            warnings.append(
                f"{file.name} needs DeepSpeed's async_io, which cannot be built here: install "
                "libaio's headers (libaio-dev) and a C++ compiler"
            )
        free = shutil.disk_usage(_existing(Path(training.nvme_path or "."))).free
        if memory.nvme > free:
            warnings.append(
                f"training needs about {memory.nvme / 2**30:.1f} GiB in training.nvme_path, "
                f"{free / 2**30:.1f} are free"
            )
    return TrainingNeeds(file.stem, ranks, on_gpus, memory, host, machine, warnings)


def estimate(recipe: Recipe, workspace: Workspace, plan: Sequence[Product]) -> Cost:
    """Cost of making what is missing."""
    missing = to_make(plan, workspace, recipe)
    sources = [
        source for product in plan if product.stage == "read" for source in product.sources.values()
    ]
    files = [Path(source.source) for source in sources if source.revision is None]
    known = len(files) == len(sources) and all(file.is_file() for file in files)
    text_bytes = sum(file.stat().st_size for file in files if file.is_file())
    rows = [count_pairs(file) for file in files] if known else [None]
    pairs = None if None in rows else sum(count for count in rows if count is not None)
    parameters = _parameters(recipe)
    free = shutil.disk_usage(_existing(workspace.root)).free
    read = written = peak = None
    if parameters is not None:
        width = 2 if recipe.training.dtype == "bf16" else 4
        read, written = text_bytes, 2 * text_bytes
        for stage in STAGES.values():
            due = [product for product in missing if product.stage == stage.name]
            if stage.disk is not None and due:
                more = function(stage.disk)(recipe, due, parameters * width)
                read, written = read + more[0], written + more[1]
        # One is written beside those that are kept.
        checkpoints = recipe.training.checkpoints_kept + 1 + (recipe.training.export == "best")
        trained = any(STAGES[product.stage].logs_steps for product in missing)
        peak = written + (checkpoints * parameters * ADAM_BYTES if trained else 0)
    return Cost(
        pairs,
        int(text_bytes / BYTES_PER_TOKEN) if known else None,
        parameters,
        read,
        written,
        peak,
        free,
    )


def training_bytes(recipe: Recipe, due: Sequence[Product], model: int) -> tuple[int, int]:
    """Read and written where models of `model` bytes are trained."""
    return len(due) * model, len(due) * model


def merge_bytes(recipe: Recipe, due: Sequence[Product], model: int) -> tuple[int, int]:
    """The same of soups: each pass over the policies makes several."""
    firsts = [group[0] for group in passes(due)]
    models = sum(len(first.inputs_of("train")) + has_base(first) for first in firsts)
    return models * model, len(due) * model


def evaluation_bytes(recipe: Recipe, due: Sequence[Product], model: int) -> tuple[int, int]:
    """The same of evaluations: a candidate, or what a soup not written is the sum of; and theta_0,
    under which its answers are compared."""
    models = 0
    for evaluation in due:
        found = [each.stage for each in reads(evaluation, recipe)]
        candidates = found.count("merge") + found.count("train")
        is_virtual = "merge" not in found
        of_base = sum(has_base(soup) for soup in evaluation.inputs_of("merge") if is_virtual)
        models += candidates + of_base + 1
    return models * model, 0


def _parameters(recipe: Recipe) -> int | None:
    folder = recipe.local_path(recipe.model)
    if folder is None:
        return None
    total = 0
    for spec in open_source(folder).layout.values():
        count = 1
        for side in spec.shape:
            count *= side
        total += count
    return total


def count_pairs(file: Path) -> int | None:
    """Pairs of a file, a row each, held-out ones included.

    None where rows are rated responses, of which any number make a pair, or where the file is
    damaged, which reading it says.
    """
    return _count(file, file.stat().st_mtime_ns)


@functools.cache
def _count(file: Path, written: int) -> int | None:
    """As of when it was `written`: a check asks twice."""
    try:
        first = next((row for _, row in read_file(file) if not isinstance(row, BadRow)), {})
        return None if detect_format(first) == "helpsteer" else count_rows(file)
    except (UserError, BadRow):
        return None


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
