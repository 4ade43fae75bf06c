"""Stage 5: makes `evaluation/<method>/seed-<s>/<weights>`: the answers of one model, rewarded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from vcsoup_dist.errors import UserError
from vcsoup_dist.evaluation.prompts import choose_prompts
from vcsoup_dist.identity import Located
from vcsoup_dist.in_context.prompts import AddedText, added_scores
from vcsoup_dist.in_context.targets import Target, targets_of
from vcsoup_dist.progress import log, progress
from vcsoup_dist.recipe import ColumnsReward, Recipe
from vcsoup_dist.records.answers import has_answers
from vcsoup_dist.theta_0 import find_theta_0
from vcsoup_dist.workspace import Product, Workspace

if TYPE_CHECKING:
    from vcsoup_dist.evaluation.judges import Judge
    from vcsoup_dist.evaluation.tasks import EvaluationTask, VirtualSoup


def make(recipe: Recipe, workspace: Workspace, products: Sequence[Product]) -> None:
    """Evaluate theta_0 and every soup that is due, with one pool of workers."""
    from vcsoup_dist.evaluation.heldout_pairs import choose_pairs
    from vcsoup_dist.evaluation.workload import evaluation_workload
    from vcsoup_dist.launch.pools import run_pools
    from vcsoup_dist.launch.ray_cluster import ray_cluster

    pairs = {str(each.dataset): workspace.need(each) for each in products[0].inputs_of("read")}
    prompts = choose_prompts(pairs, recipe.evaluation.prompts)
    if not prompts:
        raise UserError("evaluation: no dataset has held-out prompts; raise data.heldout_share")
    tokens = {
        str(each.dataset): workspace.need(each)
        for product in products
        for each in product.inputs_of("tokens")
    }
    judges = _judges(recipe, products[0])
    with ExitStack() as stack:
        tasks = _due_tasks(recipe, workspace, products, stack)
        if not tasks:
            return
        log.info("evaluation: %d held-out prompts, %d models", len(prompts), len(tasks))
        workload = evaluation_workload(
            tasks,
            prompts,
            judges,
            recipe.evaluation,
            recipe.scoring.tokens_per_batch,
            choose_pairs(tokens, recipe.evaluation.heldout_pairs),
        )
        with (
            ray_cluster(recipe.launch, workspace.root),
            progress("evaluation", len(tasks) * len(prompts), "answers") as advance,
            closing(run_pools([workload], advance)) as done,
        ):
            list(done)


def _judges(recipe: Recipe, product: Product) -> list[Judge]:
    from vcsoup_dist.evaluation.judges import share_models

    rewards, sources = {}, {}
    for value in recipe.values:
        reward = recipe.judge_of(value)
        assert not isinstance(reward, ColumnsReward)  # the recipe refuses it
        rewards[value], sources[value] = reward, product.sources[f"judge/{value}"]
    return share_models(rewards, sources)


def _due_tasks(
    recipe: Recipe, workspace: Workspace, products: Sequence[Product], stack: ExitStack
) -> list[EvaluationTask]:
    """Tasks for the products whose answers no killed run has left; `stack` publishes them all."""
    from vcsoup_dist.evaluation.tasks import EvaluationTask

    tasks = []
    targets = targets_of(workspace, products)
    for product in products:
        model = _model_of(product, recipe, workspace)
        draft = stack.enter_context(workspace.publishing(product))
        if not has_answers(draft.output):
            with_pairs = bool(product.inputs_of("tokens"))
            target = targets.get(product.name)
            added = _asked_for(product, target) if target else None
            tasks.append(
                EvaluationTask(
                    product.name,
                    model,
                    find_theta_0(product, workspace),
                    draft.output,
                    draft.workers_lock,
                    with_pairs,
                    added,
                )
            )
    return tasks


def _asked_for(product: Product, target: Target) -> AddedText:
    """The scores that a candidate's prompts ask for."""
    log.info("%s asks for %s", product.name, target.text())
    if fault := target.fault():
        log.warning("%s: %s", product.name, fault)
    return added_scores(target.asked.scores, target.scores)


def _model_of(product: Product, recipe: Recipe, workspace: Workspace) -> Located | VirtualSoup:
    """theta_0, a policy, a written soup, or the policies and weights of one that is not written."""
    from vcsoup_dist.evaluation.tasks import VirtualSoup

    for policy in product.inputs_of("train"):
        return Located(str(workspace.need(policy)), None, None)
    soups = product.inputs_of("merge")
    if not soups:
        return find_theta_0(product, workspace)
    if recipe.keep.soups:
        return Located(str(workspace.need(soups[0])), None, None)
    soup = soups[0]
    policies = tuple(workspace.need(each) for each in soup.inputs_of("train"))
    return VirtualSoup(policies, soup.weights or ())
