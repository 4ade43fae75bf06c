"""The `vcsoup` command. A stage is imported only when it is asked for."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcsoup_dist import __version__
from vcsoup_dist.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vcsoup_dist.recipe import Recipe
    from vcsoup_dist.workspace import Product, Workspace

app = typer.Typer(
    help="Value-consistent soups of language models: score, filter, train, soup, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir", "-d", help="Run directory; runs/NAME by default, with the recipe's name."
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vcsoup_dist {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def check(recipe: RecipeFile, run_dir: RunDir = None) -> None:
    """Check a recipe and say what will run and what it will cost; changes nothing.

    Example: vcsoup check examples/hh_llama3_8b.yaml
    """
    from vcsoup_dist.plan.show import show_check

    loaded, workspace, plan = _plan(recipe, run_dir, make=False)
    show_check(loaded, workspace, plan)


@app.command()
def status(recipe: RecipeFile, run_dir: RunDir = None) -> None:
    """Say stage by stage what is made and what is missing.

    Example: vcsoup status recipe.yaml
    """
    from vcsoup_dist.plan.show import show_status

    _, workspace, plan = _plan(recipe, run_dir, make=False)
    show_status(workspace, plan)


@app.command()
def score(recipe: RecipeFile, run_dir: RunDir = None) -> None:
    """Read the preference pairs and score them with every reward, on Ray actors.

    Example: vcsoup score recipe.yaml
    """
    _make(recipe, run_dir, ["read", "score"])


@app.command("filter")
def filter_pairs(recipe: RecipeFile, run_dir: RunDir = None) -> None:
    """Keep the consistent pairs of every value.

    Example: vcsoup filter recipe.yaml
    """
    _make(recipe, run_dir, ["filter"])


@app.command()
def train(
    value: Annotated[str, typer.Argument(metavar="VALUE", help="A value of the recipe.")],
    recipe: RecipeFile,
    run_dir: RunDir = None,
) -> None:
    """Train one value's policies (every method and seed) with DeepSpeed ZeRO-3.

    The reference log-probs they need are computed first, once for all values.

    Example: vcsoup train helpful recipe.yaml
    """
    from vcsoup_dist.recipe_file import load_recipe

    known = load_recipe(recipe).trained_values()
    if value not in known:
        raise UserError(f"`{value}` is no value with a policy; the recipe has {', '.join(known)}")
    _make(recipe, run_dir, ["reference", "train"], lambda each: each.value in (None, value))


@app.command()
def merge(recipe: RecipeFile, run_dir: RunDir = None) -> None:
    """Write the soups of the recipe's grid, streaming the policies once.

    Example: vcsoup merge recipe.yaml
    """
    _make(recipe, run_dir, ["merge"])


@app.command()
def evaluate(recipe: RecipeFile, run_dir: RunDir = None) -> None:
    """Generate held-out answers with every soup and score them, on Ray actors.

    Example: vcsoup evaluate recipe.yaml
    """
    _make(recipe, run_dir, ["evaluate"])


@app.command()
def report(recipe: RecipeFile, run_dir: RunDir = None) -> None:
    """Find the Pareto fronts and write the report: HTML, PNG, CSV and JSON.

    Example: vcsoup report recipe.yaml
    """
    from vcsoup_dist.plan.show import show_result

    _make(recipe, run_dir, ["report"])
    show_result(_plan(recipe, run_dir, make=False)[1])


@app.command()
def run(recipe: RecipeFile, run_dir: RunDir = None) -> None:
    """Make all that is missing, from the pairs to the report; run again, it goes on.

    Example: vcsoup run recipe.yaml --run-dir /scratch/me/run1
    """
    from vcsoup_dist.plan.products import STAGES
    from vcsoup_dist.plan.show import show_result

    workspace = _make(recipe, run_dir, STAGES)
    show_result(workspace)


@app.command()
def clean(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove checkpoints of finished policies, stale products, and what `keep` gives up.

    Example: vcsoup clean recipe.yaml --dry-run
    """
    from vcsoup_dist.plan.clean import removable, remove, size_of

    loaded, workspace, plan = _plan(recipe, run_dir, make=False)
    found = list(removable(loaded, workspace, plan))
    for folder, reason in found:
        print(f"{size_of(folder) / 1e9:9.3f} GB  {folder}  ({reason})")
        if not dry_run:
            remove(folder)
    if not found:
        print("nothing to remove")


@app.command()
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


def _plan(
    recipe_file: Path, run_dir: Path | None, make: bool
) -> tuple[Recipe, Workspace, list[Product]]:
    """Recipe, workspace and plan; the run directory is touched only where something is made."""
    from vcsoup_dist.identity import Hashes
    from vcsoup_dist.plan.products import make_plan
    from vcsoup_dist.recipe_file import load_recipe
    from vcsoup_dist.workspace import Workspace

    recipe = load_recipe(recipe_file)
    root = run_dir or Path("runs") / recipe.name
    workspace = Workspace.open(root, recipe) if make else Workspace.look(root, recipe)
    hashes = Hashes(root / "hashes.json")
    plan = make_plan(recipe, hashes)
    if make:
        hashes.save()
    return recipe, workspace, plan


def _make(
    recipe_file: Path,
    run_dir: Path | None,
    stages: Sequence[str],
    only: Callable[[Product], bool] = lambda product: True,
) -> Workspace:
    from vcsoup_dist.plan.run import make_missing

    recipe, workspace, plan = _plan(recipe_file, run_dir, make=True)
    if not make_missing(recipe, workspace, plan, stages, only):
        logging.getLogger("vcsoup").info("nothing to do: %s is up to date", workspace.root)
    return workspace


def main() -> None:
    """Entry point: mistakes a person can mend are plain lines and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("vcsoup").setLevel(logging.INFO)
    # Recipes may name callables in files beside them and modules of the current folder.
    sys.path.insert(0, os.getcwd())
    try:
        app()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"vcsoup: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("vcsoup: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
