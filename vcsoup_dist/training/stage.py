"""The training stage: theta_0, reference log-probs and policies, on ranks that it starts."""

from __future__ import annotations

import contextlib
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
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.pairs import HELD_OUT, PairsManifest
from vcsoup_dist.records.training_summary import SUMMARY
from vcsoup_dist.training.job import Job, PolicyTask, ReferenceTask
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
                task = _sft_task(workspace, draft)
                _launch(recipe, workspace, draft, sft_training(recipe), policy=task)


def _sft_task(workspace: Workspace, draft: Draft) -> PolicyTask:
    pairs: list[str] = []
    heldout: list[str] = []
    count = 0
    for each in draft.product.inputs_of("read"):
        folder = workspace.need(each).resolve()
        manifest = PairsManifest.read(folder)
        pairs += [str(folder / each.file) for each in manifest.files]
        heldout.append(str(folder / HELD_OUT))
        count += manifest.train
    return _task(workspace, draft, pairs, heldout, [], count)


def make_references(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make reference log-probs: one launch for all datasets."""
    with contextlib.ExitStack() as stack:
        # Another value's training may be making the same reference: wait for it and share it.
        drafts = [
            stack.enter_context(workspace.publishing(product, True, keep_scratch=False))
            for product in sorted(products, key=lambda product: product.name)
        ]
        due = [draft for draft in drafts if not workspace.is_made(draft.product)]
        tasks = []
        for draft in due:
            (pairs,) = draft.product.inputs_of("read")
            folder = workspace.need(pairs).resolve()
            tasks.append(ReferenceTask(str(folder), str(draft.output.resolve()), _lock(draft)))
        if due:
            _launch(recipe, workspace, due[0], recipe.training, references=tasks)


def make_policies(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Train policies, one launch of ranks after the other."""
    missing = lacks_wandb(recipe.launch.wandb)
    if missing and not os.environ.get("VCSOUP_CONTAINER"):  # whose Python may have it
        raise UserError(missing)
    for number, product in enumerate(products):
        if number:  # the ranks of the one before did not stop, so it is published
            raise_if_stop_requested(recipe.launch.max_minutes)
        with workspace.publishing(product, keep_scratch=recipe.keep.checkpoints) as draft:
            task = _preference_task(workspace, draft)
            _launch(recipe, workspace, draft, recipe.training, policy=task)


def _preference_task(workspace: Workspace, draft: Draft) -> PolicyTask:
    (filtered,) = draft.product.inputs_of("filter")
    folder = workspace.need(filtered).resolve()
    report = FilterReport.read(folder)
    references = [workspace.need(each) for each in draft.product.inputs_of("reference")]
    return _task(
        workspace,
        draft,
        [str(folder / each.file) for each in report.files],
        [str(folder / HELD_OUT)],
        [str(each.resolve()) for each in references],
        report.comparison.usable,
    )


def _task(
    workspace: Workspace,
    draft: Draft,
    pairs: list[str],
    heldout: list[str],
    references: list[str],
    unfiltered_pairs: int,
) -> PolicyTask:
    product = draft.product
    return PolicyTask(
        name=product.name,
        pairs=pairs,
        heldout=heldout,
        references=references,
        seed=product.seed or 0,
        unfiltered_pairs=unfiltered_pairs,
        output=str(draft.output.resolve()),
        scratch=str(draft.scratch.resolve()),
        logs=_logs(workspace, product),
        workers_lock=_lock(draft),
    )


def _launch(
    recipe: Recipe,
    workspace: Workspace,
    draft: Draft,
    training: Training,
    references: list[ReferenceTask] | None = None,
    policy: PolicyTask | None = None,
) -> None:
    """Start ranks on a job in the folder of `draft`, and wait for them."""
    from vcsoup_dist.training.deepspeed_config import find_deepspeed_config

    product, launch = draft.product, recipe.launch
    model = find_theta_0(product, workspace)
    if "model" in product.sources:  # the recipe's model, not a theta_0 that SFT made of it
        _check_base(recipe, workspace, product, model, training)
    job = Job(
        model.source,
        model.revision,
        str(find_deepspeed_config(recipe)),
        training,
        launch,
        references or [],
        policy,
        _swap_folder(recipe, product),
    )
    file = draft.scratch.resolve() / "job.json"
    job.write(file)
    logs = Path(_logs(workspace, product))
    if launch.launcher == "srun":
        run_on_slurm(RANK, file, launch.threads, logs)
    else:
        plural = "" if launch.ranks == 1 else "s"
        log.info("%s: starting %d rank%s", product.stage, launch.ranks, plural)
        run_ranks(RANK, file, launch.ranks, launch.threads, logs)
    if policy and not (draft.output / SUMMARY).exists():
        raise RuntimeError(f"the ranks exited with 0 and left no {SUMMARY} in {draft.output}")


def _check_base(
    recipe: Recipe, workspace: Workspace, product: Product, model: Located, training: Training
) -> None:
    """Run the checks of `vcsoup check` on the model that the ranks will load."""
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


def _logs(workspace: Workspace, product: Product) -> str:
    return str((workspace.root / "logs" / product.name).resolve())
