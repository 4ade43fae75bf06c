"""What each method of a comparison is, a file each: its pairs, its policies, its candidate models.

A new method is a new file with a class `METHOD`: the file's name is the kind in a recipe, the
class's fields are its options, and its functions say what to make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import vcsoup_dist.recipe  # noqa: F401  it reads the kinds by name, and must be there first
from vcsoup_dist.methods.method import Method

if TYPE_CHECKING:
    from vcsoup_dist.recipe import Recipe


def methods_of(recipe: Recipe) -> dict[str, Method]:
    """The method instances of a recipe by name, in its order."""
    return {name: each for name, each in recipe.methods.items() if isinstance(each, Method)}
