"""Which run a command is about: that of a recipe, or a run directory itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.pipeline.plan_file import check_format
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.load import load_copy, load_recipe
from vcsoup_dist.recipe.origin import NAME, find_original, read_origin, was_edited
from vcsoup_dist.recipe.yaml_file import read_yaml


@dataclass(frozen=True)
class Run:
    """A recipe and its run directory, which need not be there."""

    recipe: Recipe
    root: Path
    from_copy: bool
    """Whether the recipe is the copy that the run directory has."""


def find_run(argument: Path, run_dir: Path | None = None, overrides: Sequence[str] = ()) -> Run:
    """The run of `argument`: a recipe's file, a run directory, or the recipe's copy in one.

    Raises UserError where it is none of these, where the copy was edited, where a run of the recipe
    is elsewhere, and where another version of the program made the run directory.
    """
    root = _root_of(argument)
    if root is None:
        recipe = load_recipe(argument, overrides)
        run = Run(recipe, run_dir or _default_root(argument, recipe), False)
    elif overrides:
        raise UserError(f"{argument}: --set changes a recipe, not the copy in a run directory")
    else:
        run = Run(_copied(root), run_dir or root, True)
    check_format(run.root)
    return run


def find_recipe(argument: Path) -> Recipe:
    """The recipe that `argument` is, or whose run directory or copy it is; runs do not matter."""
    root = _root_of(argument)
    return load_recipe(argument) if root is None else _copied(root)


def is_run_directory(folder: Path) -> bool:
    """Whether a folder is a run directory that says where its recipe came from."""
    return (folder / NAME).is_file() and (folder / "recipe.yaml").is_file()


def _root_of(argument: Path) -> Path | None:
    """The run directory that `argument` is, or whose copy of a recipe it is."""
    if argument.name == "recipe.yaml" and is_run_directory(argument.parent):
        return argument.parent
    if not argument.is_dir():
        return None
    if is_run_directory(argument):
        return argument
    if (argument / "recipe.yaml").is_file():
        raise UserError(
            f"{argument}: a folder that does not say where its recipe came from (it has no {NAME}):"
            f" give the recipe itself, and --run-dir {argument} where that is its run directory"
        )
    raise UserError(f"{argument}: a folder, but not a run directory: it has no recipe.yaml")


def _copied(root: Path) -> Recipe:
    origin = read_origin(root)
    assert origin is not None
    copy = root / "recipe.yaml"
    original = find_original(root, origin)
    if was_edited(root, origin):
        raise UserError(
            f"{copy}: edited since it was copied from {original}; edit that one, or take this one "
            "to a folder of its own, where it is a recipe like any other"
        )
    return load_copy(copy, original)


def _default_root(recipe_file: Path, recipe: Recipe) -> Path:
    """`runs/NAME` beside the recipe; refused where a run of it is elsewhere and none is there."""
    root = recipe_file.resolve().parent / "runs" / recipe.name
    if not root.exists():
        for other in _elsewhere(recipe_file.resolve(), recipe):
            raise UserError(
                f"{other}: a run directory of this recipe, while there is none beside the recipe: "
                f"give --run-dir {other} to resume it, move it to {root}, or give --run-dir "
                f"{root} for a new one"
            )
    return root


def _elsewhere(recipe_file: Path, recipe: Recipe) -> Iterator[Path]:
    """Run directories of the recipe in the current folder's `runs`, where earlier versions put
    them, and in the recipe's folder."""
    here = Path("runs") / recipe.name
    if (here / "recipe.yaml").is_file():
        origin = read_origin(here)
        name = read_yaml(here / "recipe.yaml", "recipe").content.get("name")
        if name == recipe.name and (origin is None or find_original(here, origin) == recipe_file):
            yield here
    for found in sorted(recipe_file.parent.glob(f"*/{NAME}")):
        origin = read_origin(found.parent)
        if origin is not None and find_original(found.parent, origin) == recipe_file:
            yield found.parent
