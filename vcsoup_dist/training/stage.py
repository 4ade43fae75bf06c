"""The training stage: theta_0, reference log-probs and policies, on ranks that it starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.launch.ranks import run_ranks
from vcsoup_dist.launch.srun import run_on_slurm
from vcsoup_dist.launch.stop_signals import raise_if_stop_requested
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe, Training
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.filtered_pairs import HELD_OUT as FILTERED_HELD_OUT
from vcsoup_dist.records.pairs_read import PairsRead
from vcsoup_dist.records.reference import Reference
from vcsoup_dist.records.reweighting import Reweighting
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.records.training_summary import SUMMARY
from vcsoup_dist.records.union import UnionManifest
from vcsoup_dist.theta_0 import find_theta_0
from vcsoup_dist.training.implicit_rewards import ImplicitReward, ImplicitRewards
from vcsoup_dist.training.job import Job, PolicyTask, ReferenceTask, Selection
from vcsoup_dist.training.metrics import lacks_wandb
from vcsoup_dist.training.reference_rows import parts_to_compute, rows_read
from vcsoup_dist.training.reweighting import select_reweighted
from vcsoup_dist.training.selection import count_text, select_all, select_filtered
from vcsoup_dist.training.sft import sft_training
from vcsoup_dist.workspace import Draft, Product, Workspace

RANK = "vcsoup_dist.training.rank"
TRAIN, HELD_OUT = "train.npy", "heldout.npy"
"""The pairs of a policy, in its scratch folder."""


def make_theta_0(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make theta_0 by SFT on the chosen answers of all datasets."""
    for product in products:
        # Another value's training may be making the same theta_0: wait for it and share it.
        with workspace.publishing(product, True, recipe.keep.checkpoints) as draft:
            if not workspace.is_made(product):
                task = _sft_task(recipe.training, workspace, draft)
                _launch(recipe, workspace, draft, sft_training(recipe), policy=task)


def _sft_task(training: Training, workspace: Workspace, draft: Draft) -> PolicyTask:
    tokens = list(_token_files(workspace, draft.product).values())
    train = select_all(draft.scratch / TRAIN, tokens)
    share = -(-training.heldout_pairs // len(tokens))
    heldout = select_all(draft.scratch / HELD_OUT, tokens, share)
    count = sum(each.manifest.train for each in tokens)
    return _task(training, workspace, draft, tokens, train, heldout, [], count)


def _token_files(
    workspace: Workspace, product: Product, stage: str = "tokens"
) -> dict[str, TokenFile]:
    """The token files of a stage that a product is made from, by dataset."""
    return {
        str(each.dataset): TokenFile(workspace.need(each).resolve())
        for each in product.inputs_of(stage)
    }


def make_references(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Make log-probs of pairs: one launch for all datasets under theta_0, and for each policy."""
    by_model: dict[str, list[Product]] = {}
    for product in sorted(products, key=lambda product: product.name):
        under = [each.name for each in product.inputs_of("train")]
        by_model.setdefault("".join(under), []).append(product)
    for number, each in enumerate(by_model.values()):
        if number:
            raise_if_stop_requested(recipe.launch.max_minutes)
        _make_logps(recipe, workspace, each)


def _make_logps(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    with contextlib.ExitStack() as stack:
        # Another value's training may be making the same log-probs: wait for it and share them.
        drafts = [
            stack.enter_context(workspace.publishing(product, True, keep_scratch=False))
            for product in products
        ]
        due = [draft for draft in drafts if not workspace.is_made(draft.product)]
        tasks = [task for draft in due for task in _reference_tasks(workspace, draft)]
        if tasks:
            _launch(recipe, workspace, due[0], recipe.training, references=tasks)


def _reference_tasks(workspace: Workspace, draft: Draft) -> list[ReferenceTask]:
    """A task for each part of a dataset's pairs that policies read, and that has no log-probs."""
    product = draft.product
    (tokens,) = _token_files(workspace, product).values()
    read = np.zeros(tokens.rows, bool)
    for what, pairs in product.covers.items():
        folder = workspace.need(pairs)
        read |= rows_read(tokens, str(product.dataset), folder, PairsRead.from_text(what))
    needed = np.flatnonzero(read & tokens.usable())
    made = workspace.folder(product) if workspace.is_begun(product) else None
    parts = parts_to_compute(draft.output, made, tokens, needed)
    log.info("%s: policies read %d of its %d pairs", product.name, len(needed), tokens.rows)
    lock = _lock(draft)
    return [ReferenceTask(str(tokens.folder), str(each.resolve()), lock) for each in parts]


def make_policies(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Train policies, one launch of ranks after the other."""
    missing = lacks_wandb(recipe.launch.wandb)
    if missing and not os.environ.get("VCSOUP_CONTAINER"):  # whose Python may have it
        raise UserError(missing)
    for number, product in enumerate(products):
        if number:  # the ranks of the one before did not stop, so it is published
            raise_if_stop_requested(recipe.launch.max_minutes)
        with workspace.publishing(product, keep_scratch=recipe.keep.checkpoints) as draft:
            training = recipe.methods[str(product.method)].training(recipe)
            task = _policy_task(training, workspace, draft)
            _launch(recipe, workspace, draft, training, policy=task)


def _policy_task(training: Training, workspace: Workspace, draft: Draft) -> PolicyTask:
    if draft.product.inputs_of("in_context"):
        return _in_context_task(training, workspace, draft)
    if draft.product.inputs_of("union"):
        return _reweighted_task(training, workspace, draft)
    return _preference_task(training, workspace, draft)


def _in_context_task(training: Training, workspace: Workspace, draft: Draft) -> PolicyTask:
    tokens = list(_token_files(workspace, draft.product, "in_context").values())
    train = select_all(draft.scratch / TRAIN, tokens, both_answers=True)
    share = -(-training.heldout_pairs // len(tokens))
    heldout = select_all(draft.scratch / HELD_OUT, tokens, share, both_answers=True)
    (union,) = (workspace.need(each) for each in draft.product.inputs_of("union"))
    count = UnionManifest.read(union).answers_of_all_values
    return _task(training, workspace, draft, tokens, train, heldout, [], count)


def _reweighted_task(training: Training, workspace: Workspace, draft: Draft) -> PolicyTask:
    how = Reweighting.from_json(draft.product.made_from["reweighting"])
    (union,) = (workspace.need(each) for each in draft.product.inputs_of("union"))
    tokens = _token_files(workspace, draft.product)
    implicit = _implicit_rewards(workspace, draft.product, how, tokens)
    train = select_reweighted(draft.scratch / TRAIN, tokens, union, how, implicit=implicit)
    share = -(-training.heldout_pairs // len(tokens))
    heldout = select_reweighted(draft.scratch / HELD_OUT, tokens, union, how, share, implicit)
    files, references = list(tokens.values()), _references(workspace, draft.product, tokens)
    count = UnionManifest.read(union).pairs_of_a_value
    return _task(training, workspace, draft, files, train, heldout, references, count)


def _references(workspace: Workspace, product: Product, datasets: Iterable[str]) -> list[Path]:
    """Of each dataset; none for an objective without reference."""
    known = {
        str(each.dataset): each
        for each in product.inputs_of("reference")
        if not each.inputs_of("train")
    }
    return [workspace.need(known[each]).resolve() for each in datasets if known]


def _implicit_rewards(
    workspace: Workspace, product: Product, how: Reweighting, tokens: Mapping[str, TokenFile]
) -> ImplicitRewards | None:
    """Of the policies whose log-probs a policy is trained on; None where it is on none."""
    policies: dict[str, Product] = {}
    logps: dict[str, dict[str, Reference]] = {}
    for each in product.inputs_of("reference"):
        for policy in each.inputs_of("train"):
            name = str(each.dataset)
            policies[str(policy.value)] = policy
            found = Reference(workspace.need(each), tokens[name])
            logps.setdefault(str(policy.value), {})[name] = found
    if not policies:
        return None
    folders = zip(tokens, _references(workspace, product, tokens), strict=True)
    return ImplicitRewards(
        {name: Reference(folder, tokens[name]) for name, folder in folders},
        [
            ImplicitReward(weight, policies[value].made_from["training"]["beta"], logps[value])
            for value, weight in how.rewarded_by.items()
        ],
    )


def _preference_task(training: Training, workspace: Workspace, draft: Draft) -> PolicyTask:
    folders = [workspace.need(each) for each in draft.product.inputs_of("filter")]
    reports = [FilterReport.read(folder) for folder in folders]
    tokens = _token_files(workspace, draft.product)
    files = [
        folder / each.file
        for folder, report in zip(folders, reports, strict=True)
        for each in report.files
    ]
    by_consistency = training.pair_weights == "consistency"
    train = select_filtered(draft.scratch / TRAIN, tokens, files, weighted=by_consistency)
    share = -(-training.heldout_pairs // len(folders))
    held_out = [folder / FILTERED_HELD_OUT for folder in folders]
    heldout = select_filtered(draft.scratch / HELD_OUT, tokens, held_out, share)
    references = _references(workspace, draft.product, tokens)
    usable = sum(report.comparison.usable for report in reports)
    files_of_tokens = list(tokens.values())
    return _task(training, workspace, draft, files_of_tokens, train, heldout, references, usable)


def _task(
    training: Training,
    workspace: Workspace,
    draft: Draft,
    tokens: list[TokenFile],
    train: Selection,
    heldout: Selection,
    references: list[Path],
    unfiltered_pairs: int,
) -> PolicyTask:
    """The task of a policy; UserError where no pair can be trained on."""
    product = draft.product
    if not train.pairs:
        raise UserError(
            f"{product.name}: no pair can be trained on ({count_text(train.left_out) or 'none'}); "
            + (train.refused or f"training.max_length is {training.max_length}")
        )
    if train.refused:
        log.warning("%s: pairs are left out, the first is %s", product.name, train.refused)
    return PolicyTask(
        name=product.name,
        tokens=[str(each.folder) for each in tokens],
        references=[str(folder) for folder in references],
        train=train,
        heldout=heldout,
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
    model = _weights(product, workspace)
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


def _weights(product: Product, workspace: Workspace) -> Located:
    """What the ranks load: theta_0, or the policy under which log-probs are computed."""
    for policy in product.inputs_of("train"):
        return Located(str(workspace.need(policy).resolve()), None, None)
    return find_theta_0(product, workspace)


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
