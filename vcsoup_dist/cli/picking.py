"""The command `vcsoup pick`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vcsoup_dist.cli.options import Overwrite, RecipeFile, RunDir, Settings, numbers_of, takes
from vcsoup_dist.cli.plan import plan_or_recorded
from vcsoup_dist.errors import UserError


@dataclass(frozen=True)
class PickArguments:
    """The command line of `vcsoup pick`."""

    recipe: RecipeFile
    balanced: Annotated[
        bool,
        typer.Option("--balanced", help="The evaluated candidate that is best at its worst value."),
    ] = False
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...",
            help="The soup of these weights, in the recipe's order of values, evaluated or not.",
        ),
    ] = None
    prefer: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE=W,...",
            help="The evaluated candidate with the largest sum of W times the value's reward, "
            "on the report's scale.",
        ),
    ] = None
    candidate: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="As the report calls it, or its folder, such as helpful-0.30_harmless-0.70.",
        ),
    ] = None
    method: Annotated[
        str | None,
        typer.Option(
            help="Among this method's candidates only. By default all for --balanced and --prefer, "
            "else the first method with soups."
        ),
    ] = None
    seed: Annotated[int | None, typer.Option(help="The recipe's first by default.")] = None
    out: Annotated[
        Path | None,
        typer.Option(
            help="The model's directory; picked/METHOD/SEED/NAME of the run directory by default."
        ),
    ] = None
    overwrite: Overwrite = False
    run_dir: RunDir = None
    settings: Settings = None


@takes(PickArguments)
def pick(context: typer.Context, given: PickArguments) -> None:
    """Write one model of a run with a model card, and say how to chat, serve and upload.

    Give one of --balanced, --weights, --prefer and --candidate.

    Example: vcsoup pick recipe.yaml --balanced

    Example: vcsoup pick recipe.yaml --weights 0.3,0.7 --method vc_soup --out model

    Example: vcsoup pick recipe.yaml --prefer helpful=0.7,harmless=0.3
    """
    ways = (given.balanced, given.weights, given.prefer, given.candidate)
    if sum(each not in (None, False) for each in ways) != 1:
        raise UserError("give one of --balanced, --weights, --prefer and --candidate")
    weights = None if given.weights is None else tuple(numbers_of(given.weights))
    prefer = None if given.prefer is None else preference_of(given.prefer)
    from vcsoup_dist.pick.choose import Wish
    from vcsoup_dist.pick.pick import pick as pick_model

    wish = Wish(given.balanced, weights, prefer, given.candidate, given.method, given.seed)
    recipe, workspace, plan = plan_or_recorded(given.recipe, given.run_dir, given.settings)
    pick_model(recipe, workspace, plan, wish, given.out, given.overwrite)


def preference_of(text: str) -> dict[str, float]:
    """The weights by value of `--prefer helpful=0.7,harmless=0.3`."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            weight = float(number)
        except ValueError:
            raise UserError(
                f"--prefer {text}: give values and numbers, such as helpful=0.7,harmless=0.3"
            ) from None
        if name.strip() in found:
            raise UserError(f"--prefer {text}: gives `{name.strip()}` twice")
        found[name.strip()] = weight
    return found
