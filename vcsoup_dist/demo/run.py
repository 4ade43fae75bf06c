"""`vcsoup demo`: the whole method on the generated world, by the same parts as any run."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from vcsoup_dist.progress import log

RECIPE = Path(__file__).with_name("recipe.yaml")


def run_demo(folder: Path) -> None:
    """Make the world in `folder`/world, then run the recipe beside it in `folder`/run.

    Run again, it goes on where it was, or has nothing to do.
    """
    from vcsoup_dist.demo.world import make_world
    from vcsoup_dist.identity import Hashes
    from vcsoup_dist.plan.products import make_plan
    from vcsoup_dist.plan.run import make_missing
    from vcsoup_dist.plan.show import show_result
    from vcsoup_dist.recipe_file import load_recipe
    from vcsoup_dist.workspace import Workspace

    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    make_world(folder / "world", log.info)
    recipe_file = folder / "recipe.yaml"
    if not recipe_file.exists():  # a reader may change it and run the demo again
        shutil.copy(RECIPE, recipe_file)
    recipe = load_recipe(recipe_file)
    workspace = Workspace.open(folder / "run", recipe)
    plan = make_plan(recipe, Hashes(workspace.root / "hashes.json"))
    if not make_missing(recipe, workspace, plan):
        log.info("nothing to do: %s is up to date", workspace.root)
    show_result(workspace)
    log.info("the demo took %.0f s", time.monotonic() - began)
