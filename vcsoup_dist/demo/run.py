"""`vcsoup demo`: the whole method on the generated world, by the same parts as any run."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from vcsoup_dist.progress import log

RECIPE = Path(__file__).with_name("recipe.yaml")


def run_demo(folder: Path) -> None:
    """Make the world in `folder`/world, then run the recipe beside it in `folder`/run.

    Run again, it resumes, or has nothing to do.
    """
    from vcsoup_dist.demo.world import make_world
    from vcsoup_dist.identity import Hashes
    from vcsoup_dist.pipeline.graph import make_plan
    from vcsoup_dist.pipeline.result import show_result
    from vcsoup_dist.pipeline.run import make_missing
    from vcsoup_dist.recipe.load import load_recipe
    from vcsoup_dist.workspace import Workspace

    began = time.monotonic()
    # Two ranks and two actors on the CPU, so that the demo is the same on every machine.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    folder.mkdir(parents=True, exist_ok=True)
    make_world(folder / "world", log.info)
    recipe_file = folder / "recipe.yaml"
    if not recipe_file.exists():  # a reader may change it and run the demo again
        shutil.copy(RECIPE, recipe_file)
    recipe = load_recipe(recipe_file)
    workspace = Workspace.open(folder / "run", recipe)
    hashes = Hashes(workspace.root / "hashes.json")
    plan = make_plan(recipe, hashes)
    hashes.save()
    if not make_missing(recipe, workspace, plan):
        log.info("nothing to do: %s is up to date", workspace.root)
    show_result(workspace)
    log.info("the demo took %.0f s", time.monotonic() - began)
