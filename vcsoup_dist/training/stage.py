"""The door of training: theta_0, reference log-probs, policies, on ranks started for them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.launch.ranks import run_ranks
from vcsoup_dist.launch.srun import run_on_slurm
from vcsoup_dist.launch.stop_signals import raise_if_stop_requested
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe, Training
from vcsoup_dist.training.job import SUMMARY, Job, PolicyTask, ReferenceTask
from vcsoup_dist.training.metrics import lacks_wandb
from vcsoup_dist.training.sft import find_theta_0, sft_training
from vcsoup_dist.workspace import Draft, Product, Workspace

RANK = "vcsoup_dist.training.rank"


def make_theta_0(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make theta_0 by SFT on the chosen answers of all datasets."""
    for product in products:
        # Another value's training may be making the same theta_0: wait for it and share it.
        with workspace.publishing(product, True, recipe.keep.checkpoints) as draft:
            if not workspace.is_made(product):
                _train_theta_0(recipe, workspace, product, draft)


def _train_theta_0(recipe: Recipe, workspace: Workspace, product: Product, draft: Draft) -> None:
    pairs: list[str] = []
    heldout: list[str] = []
    count = 0
    for each in product.inputs_of("read"):
        folder = workspace.need(each).resolve()
        manifest = json.loads((folder / "manifest.json").read_text())
        pairs += [str(folder / shard["file"]) for shard in manifest["shards"]]
        heldout.append(str(folder / "heldout.parquet"))
        count += manifest["train"]
    training = sft_training(recipe)
    task = _policy_task(workspace, product, draft, pairs, heldout, [], count)
    _launch(recipe, workspace, product, draft, training, policy=task)


def make_references(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make reference log-probs: one launch for all datasets."""
    with contextlib.ExitStack() as stack:
        # Another value's training may be making the same reference: wait for it and share it.
        locked = [
            (product, stack.enter_context(workspace.publishing(product, True, keep_scratch=False)))
            for product in sorted(products, key=lambda product: product.name)
        ]
        due = [(product, draft) for product, draft in locked if not workspace.is_made(product)]
        tasks = []
        for product, draft in due:
            (pairs,) = product.inputs_of("read")
            folder = workspace.need(pairs).resolve()
            tasks.append(ReferenceTask(str(folder), str(draft.output.resolve()), _lock(draft)))
        if due:
            _launch(recipe, workspace, *due[0], recipe.training, references=tasks)


def make_policies(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Train policies, one launch of ranks after the other."""
    missing = lacks_wandb(recipe.launch.wandb)
    if missing and not os.environ.get("VCSOUP_CONTAINER"):  # whose Python may have it
        raise UserError(missing)
    for number, product in enumerate(products):
        if number:  # the ranks of the one before did not stop, so it is published
            raise_if_stop_requested(recipe.launch.max_minutes)
        with workspace.publishing(product, keep_scratch=recipe.keep.checkpoints) as draft:
            (filtered,) = product.inputs_of("filter")
            report = json.loads((workspace.need(filtered) / "report.json").read_text())
            references = [workspace.need(each) for each in product.inputs_of("reference")]
            folder = workspace.folder(filtered).resolve()
            task = _policy_task(
                workspace,
                product,
                draft,
                [str(folder / each["file"]) for each in report["files"]],
                [str(folder / "heldout.parquet")],
                [str(each.resolve()) for each in references],
                report["comparison"]["usable"],
            )
            _launch(recipe, workspace, product, draft, recipe.training, policy=task)


def _policy_task(
    workspace: Workspace,
    product: Product,
    draft: Draft,
    pairs: list[str],
    heldout: list[str],
    references: list[str],
    unfiltered_pairs: int,
) -> PolicyTask:
    return PolicyTask(
        name=product.name,
        pairs=pairs,
        heldout=heldout,
        references=references,
        seed=product.seed or 0,
        unfiltered_pairs=unfiltered_pairs,
        output=str(draft.output.resolve()),
        scratch=str(draft.scratch.resolve()),
        logs=str((workspace.root / "logs" / product.name).resolve()),
        workers_lock=_lock(draft),
    )


def _launch(
    recipe: Recipe,
    workspace: Workspace,
    product: Product,
    draft: Draft,
    training: Training,
    references: list[ReferenceTask] | None = None,
    policy: PolicyTask | None = None,
) -> None:
    from vcsoup_dist.training.deepspeed_config import find_deepspeed_config

    model = find_theta_0(product, workspace)
    if "model" in product.sources:  # not a theta_0 that a warm-up has made of it
        _check_base(recipe, workspace, product, model, training)
    job = Job(
        model.source,
        model.revision,
        str(find_deepspeed_config(recipe)),
        training,
        recipe.launch,
        references or [],
        policy,
        _swap_folder(recipe, product),
    )
    file = draft.scratch.resolve() / "job.json"
    job.write(file)
    logs = Path(workspace.root / "logs" / product.name).resolve()
    if recipe.launch.launcher == "srun":
        run_on_slurm(RANK, file, recipe.launch.threads, logs)
    else:
        ranks = recipe.launch.ranks
        log.info("%s: starting %d rank%s", product.stage, ranks, "" if ranks == 1 else "s")
        run_ranks(RANK, file, ranks, recipe.launch.threads, logs)
    if policy and not (draft.output / SUMMARY).exists():
        raise RuntimeError(f"the ranks ended well and left no {SUMMARY} in {draft.output}")


def _check_base(
    recipe: Recipe, workspace: Workspace, product: Product, model: Located, training: Training
) -> None:
    """The checks of `vcsoup check`, of the model that the ranks will load."""
    from vcsoup_dist.training.base_checks.check import check_base
    from vcsoup_dist.training.base_checks.first_pairs import first_texts

    datasets = {
        str(each.dataset): first_texts(workspace.need(each)) for each in product.inputs_of("read")
    }
    warnings = check_base(model.source, model.revision, training, recipe.evaluation, datasets)
    for warning in warnings:
        log.warning("%s: %s", product.stage, warning)


def _swap_folder(recipe: Recipe, product: Product) -> str | None:
    """Of this product alone: DeepSpeed names its swap files by rank only."""
    if recipe.training.nvme_path is None:
        return None
    return str(recipe.path_of(recipe.training.nvme_path) / f"vcsoup-{product.fingerprint}")


def _lock(draft: Draft) -> str:
    return str(draft.workers_lock.resolve())
