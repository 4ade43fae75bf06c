"""Commands that make products: one for each stage, and `run` for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from vcsoup_dist.cli.options import AddressOption, LauncherOption, RecipeFile, RunDir, Settings
from vcsoup_dist.cli.plan import make_products
from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log


def score(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    address: AddressOption = None,
) -> None:
    """Read the preference pairs and score them with every reward, on Ray actors.

    Example: vcsoup score recipe.yaml
    """
    make_products(recipe, run_dir, "score", address=address, settings=settings)


def filter_pairs(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    address: AddressOption = None,
) -> None:
    """Keep the consistent pairs of every value, and write all pairs in tokens for training.

    Example: vcsoup filter recipe.yaml
    """
    from vcsoup_dist.pipeline.result import show_filter_pages

    workspace = make_products(recipe, run_dir, "filter", address=address, settings=settings)
    show_filter_pages(workspace)


def sft(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    launcher: LauncherOption = None,
) -> None:
    """Make theta_0 by supervised fine-tuning on all chosen answers, where the recipe says so.

    `vcsoup reference` and `vcsoup train` do it by themselves.

    Exit codes: as for `vcsoup train`.

    Example: vcsoup sft recipe.yaml
    """
    make_products(recipe, run_dir, "sft", launcher=launcher, settings=settings)


def warmup(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    launcher: LauncherOption = None,
) -> None:
    """The former name of `vcsoup sft`."""
    log.warning("`vcsoup warmup` is now `vcsoup sft`")
    sft(recipe, run_dir, settings, launcher)


def reference(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    launcher: LauncherOption = None,
) -> None:
    """Compute log-probs under theta_0 of the pairs that policies read, once for all policies.

    theta_0 is made first where the recipe has `sft`.
    Where a method takes policies as rewards, it computes log-probs under those
    that are trained.
    `vcsoup train` does all of it by itself. A stopped command keeps what it finished.

    Exit codes: as for `vcsoup train`.

    Example: vcsoup reference recipe.yaml
    """
    make_products(recipe, run_dir, "reference", launcher=launcher, settings=settings)


def train(
    value: Annotated[
        str,
        typer.Argument(
            metavar="VALUE",
            help="A value of the recipe, or one policy: policies/METHOD/VALUE/seed-SEED.",
        ),
    ],
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    launcher: LauncherOption = None,
) -> None:
    """Train one value's policies (every method and seed), or one of them, with DeepSpeed.

    theta_0 and the reference log-probs they need are made first, once for all.

    Exit codes: 0 done; 2 a mistake to fix; 75 stopped on request, by a signal
    or `launch.max_minutes`, and 130 by Ctrl-C: run the same command to resume. A second
    Ctrl-C stops it at once, and loses the steps since the last checkpoint.

    Example: vcsoup train helpful recipe.yaml
    """
    from vcsoup_dist.pipeline.find_run import find_run
    from vcsoup_dist.pipeline.products import policy_names

    loaded = find_run(recipe, run_dir, settings or ()).recipe
    known = loaded.trained_values()
    if value not in known and value not in (policies := policy_names(loaded)):
        known = policies if "/" in value else known
        raise UserError(
            f"`{value}` is not a value with a policy; the recipe has {', '.join(known)}"
        )
    make_products(
        recipe,
        run_dir,
        "train",
        only=lambda each: value in (each.value, each.name),
        launcher=launcher,
        settings=settings,
    )


def evaluate(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    address: AddressOption = None,
) -> None:
    """Generate held-out answers with every soup and score them, on Ray actors.

    Example: vcsoup evaluate recipe.yaml
    """
    make_products(recipe, run_dir, "evaluate", address=address, settings=settings)


def report(recipe: RecipeFile, run_dir: RunDir = None, settings: Settings = None) -> None:
    """Find the Pareto fronts and write the report: HTML, PNG, CSV and JSON.

    Example: vcsoup report recipe.yaml
    """
    from vcsoup_dist.pipeline.result import show_result

    workspace = make_products(recipe, run_dir, "report", settings=settings)
    show_result(workspace)


def command_for(stage: str, command: str) -> Callable[..., None]:
    """The command of a stage that has none of its own here."""

    def make(recipe: RecipeFile, run_dir: RunDir = None, settings: Settings = None) -> None:
        make_products(recipe, run_dir, command, settings=settings)

    make.__doc__ = f"Make the products of the stage `{stage}`."
    return make


def run(
    recipe: RecipeFile,
    run_dir: RunDir = None,
    settings: Settings = None,
    launcher: LauncherOption = None,
    address: AddressOption = None,
) -> None:
    """Make all that is missing, from the pairs to the report; run it again to resume.

    Exit codes: 0 done; 2 a mistake to fix; 75 training stopped on request, by
    a signal or `launch.max_minutes`, and 130 by Ctrl-C: run the same command to resume.
    A second Ctrl-C stops training at once, and loses the steps since its checkpoint.

    Example: vcsoup run recipe.yaml --run-dir /scratch/me/run1
    """
    from vcsoup_dist.pipeline.result import show_result

    workspace = make_products(
        recipe, run_dir, launcher=launcher, address=address, settings=settings
    )
    show_result(workspace)
