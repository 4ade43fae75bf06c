"""The folder of a picked model, written by the merger: whole or not there, resumed after a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pick.choose import Choice
from vcsoup_dist.pipeline.sources import find_model
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.souping.grids import weight_of_base
from vcsoup_dist.souping.merge import write_and_log
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.options import MergeOptions
from vcsoup_dist.souping.plan import plan_merge
from vcsoup_dist.theta_0 import local_folder
from vcsoup_dist.workspace import RECORD, Product, Workspace


def default_folder(workspace: Workspace, choice: Choice) -> Path:
    """Where a model goes unless the command line says otherwise."""
    return workspace.root / "picked" / choice.method / f"seed-{choice.seed}" / choice.name


def policies_of(choice: Choice, plan: Sequence[Product]) -> list[Product]:
    """The policies that a model is made of, in the order of its weights."""
    named = {each.name: each for each in plan}
    return [
        named[f"policies/{choice.method}/{policy}/seed-{choice.seed}"]
        for policy in choice.candidate.policies
    ]


def write_model(
    recipe: Recipe,
    workspace: Workspace,
    plan: Sequence[Product],
    choice: Choice,
    out: Path,
    overwrite: bool,
) -> None:
    """Write the model into the folder `out`, but for its card; nothing where it is there.

    A soup is merged from its policies, with the bytes of `vcsoup merge`; a policy is the soup of
    itself alone. UserError where something else is at `out`, or a policy is not made.
    """
    policies, base = policies_of(choice, plan), None
    folders = [workspace.need(each) for each in policies]
    weights = choice.candidate.weights if choice.candidate.is_soup else (1.0,)
    if weight_of_base(weights):
        base = _theta_0(recipe, workspace, plan, folders[0])
    options = MergeOptions(
        base=base,
        base_name="theta_0",
        shard_size=recipe.soup.shard_size,
        memory=recipe.soup.memory,
        overwrite=overwrite,
        card=False,
        title=f"pick of {choice.method}",
    )
    names = [each.value or each.name for each in policies]
    merge_plan = plan_merge(folders, {choice.name: weights}, names, options)
    run = MergeRun.into(out, merge_plan, options, inside=False)
    run.require_outside([*folders, base])
    write_and_log(run, out)


def _theta_0(recipe: Recipe, workspace: Workspace, plan: Sequence[Product], policy: Path) -> Path:
    """The folder of the weights that the policies started from; UserError where they changed."""
    for made in plan:
        if made.stage == "sft":
            return workspace.need(made)
    hashes = Hashes(workspace.root / "hashes.json")
    model = find_model(recipe, hashes, recipe.model, recipe.revision, "model")
    began_from = json.loads((policy / RECORD).read_bytes())["made_from"]["model"]
    if json.loads(json.dumps(model.identity)) != began_from:
        raise UserError(
            f"model: {recipe.model} is not what the policies were trained from any more, so theta_0"
            " cannot be summed with them"
        )
    return local_folder(model)
