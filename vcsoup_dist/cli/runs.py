"""Commands about a run: check, status, reward-check, values, clean; and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vcsoup_dist.cli.options import RecipeFile, RunDir, Settings
from vcsoup_dist.cli.plan import plan_or_recorded, plan_run


def check(recipe: RecipeFile, run_dir: RunDir = None, settings: Settings = None) -> None:
    """Check a recipe and say what will run and what it will cost; changes nothing.

    Example: vcsoup check examples/hh_llama3_8b.yaml
    """
    import gc

    gc.disable()  # a fifth of the time of this short command, whose work is imports
    from vcsoup_dist.check.show import show_check

    loaded, workspace, plan = plan_run(recipe, run_dir, make=False, settings=settings)
    show_check(loaded, workspace, plan)


def status(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    products: Annotated[
        bool, typer.Option("--products", "-p", help="List every product with its state instead.")
    ] = False,
) -> None:
    """Say stage by stage what is done, runs, waits or failed, and how long it took.

    Example: vcsoup status recipe.yaml
    """
    from vcsoup_dist.status.show import show_products, show_status

    loaded, workspace, plan = plan_or_recorded(recipe, run_dir, settings)
    if products:
        show_products(loaded, workspace, plan)
    else:
        show_status(loaded, workspace, plan)


def reward_check(recipe: RecipeFile, run_dir: RunDir = None, settings: Settings = None) -> None:
    """Load every reward, say what was understood of it, and score the first sixty pairs.

    Finds fresh heads, doubled start tokens, templates that lose text, rewards that
    do not see the prompt, contradict the labels or follow length; changes nothing.

    Exit codes: 0 all is well; 2 a reward would give wrong scores, or none.

    Example: vcsoup reward-check recipe.yaml
    """
    from vcsoup_dist.check.rewards import check_rewards

    loaded, _, plan = plan_run(recipe, run_dir, make=False, settings=settings)
    check_rewards(loaded, plan)


def values(recipe: RecipeFile) -> None:
    """Print the values that get a policy, one a line: what VALUE of `vcsoup train` may be.

    Example: vcsoup values recipe.yaml
    """
    from vcsoup_dist.pipeline.find_run import find_recipe

    for name in find_recipe(recipe).trained_values():
        print(name)


def clean(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove checkpoints of finished policies, stale products, and what `keep` gives up.

    Example: vcsoup clean recipe.yaml --dry-run
    """
    from vcsoup_dist.pipeline.clean import removable, remove, size_of

    loaded, workspace, plan = plan_run(recipe, run_dir, make=False, settings=settings)
    found = list(removable(loaded, workspace, plan))
    for folder, reason in found:
        print(f"{size_of(folder) / 1e9:9.3f} GB  {folder}  ({reason})")
        if not dry_run and not remove(workspace, folder):
            print(f"{folder} stays: it is in use now")
    if not found:
        print("nothing to remove")


def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Where the demo's world and run directory go.")
    ] = Path("runs/demo"),
) -> None:
    """Run the whole method on a small generated world: ten minutes on two cores, no downloads.

    Example: vcsoup demo --dir /tmp/demo
    """
    from vcsoup_dist.demo.run import run_demo

    run_demo(folder)
