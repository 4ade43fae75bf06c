"""How a command finds its recipe, its run directory and its plan, and makes what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log

if TYPE_CHECKING:
    from vcsoup_dist.cli.options import Launcher
    from vcsoup_dist.recipe import Recipe
    from vcsoup_dist.workspace import Product, Workspace


def plan_run(
    recipe_file: Path, run_dir: Path | None, make: bool, settings: Sequence[str] | None = None
) -> tuple[Recipe, Workspace, list[Product]]:
    """Recipe, workspace and plan; writes to the run directory only with `make`."""
    from vcsoup_dist.identity import Hashes
    from vcsoup_dist.pipeline.find_run import find_run
    from vcsoup_dist.pipeline.graph import make_plan
    from vcsoup_dist.pipeline.plan_file import write_plan
    from vcsoup_dist.workspace import Workspace

    run = find_run(recipe_file, run_dir, settings or ())
    recipe, root = run.recipe, run.root
    workspace = Workspace.open(root, recipe) if make else Workspace.look(root, recipe)
    hashes = Hashes(root / "hashes.json")
    plan = make_plan(recipe, hashes)
    if make:
        hashes.save()
        write_plan(root, plan)
    return recipe, workspace, plan


def plan_or_recorded(
    recipe_file: Path, run_dir: Path | None, settings: Sequence[str] | None
) -> tuple[Recipe, Workspace, list[Product]]:
    """The plan of a recipe as it is now.

    The plan of the last command instead for a run directory, and for a recipe whose models or
    files are gone.
    """
    from vcsoup_dist.pipeline.find_run import find_run
    from vcsoup_dist.pipeline.plan_file import read_plan
    from vcsoup_dist.workspace import Workspace

    run = find_run(recipe_file, run_dir, settings or ())
    recorded = read_plan(run.root)
    if not run.from_copy or recorded is None:
        try:
            return plan_run(recipe_file, run_dir, make=False, settings=settings)
        except UserError as error:
            if recorded is None:
                raise
            log.warning("%s: this is the state as of the last command: %s", run.root, error)
            run = find_run(run.root)
    return run.recipe, Workspace.look(run.root, run.recipe), recorded


def make_products(
    recipe_file: Path,
    run_dir: Path | None,
    command: str | None = None,
    *,
    settings: Sequence[str] | None = None,
    only: Callable[[Product], bool] = lambda product: True,
    launcher: Launcher | None = None,
    address: str | None = None,
) -> Workspace:
    """Make what is missing, of what a `vcsoup` command makes or of all; or log that nothing is."""
    from vcsoup_dist.pipeline.run import make_missing

    recipe, workspace, plan = plan_run(recipe_file, run_dir, make=True, settings=settings)
    if launcher:
        recipe = recipe.launched_by(launcher.value)
    if address:
        recipe = recipe.on_ray_at(address)
    if command is None:
        _check_model_first(recipe, workspace, plan)
    if not make_missing(recipe, workspace, plan, command, only):
        planned = [each.command.partition(" ")[0] for each in plan]
        known = command is None or command in planned
        reason = f"{workspace.root} is up to date" if known else f"no {command} in this recipe"
        log.info("nothing to do: %s", reason)
    return workspace


def _check_model_first(recipe: Recipe, workspace: Workspace, plan: Sequence[Product]) -> None:
    """UserError now, not after the scoring, where the model does not fit the recipe.

    What it warns of is said where the model is loaded.
    """
    from vcsoup_dist.pipeline.graph import to_make

    due = {each.stage for each in to_make(plan, workspace, recipe)}
    if "score" in due:
        from vcsoup_dist.check.model import check_model

        check_model(recipe, plan, due)
