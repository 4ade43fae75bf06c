"""What every instance of a method has in a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vcsoup_dist.recipe.section import Section

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe


class MethodOptions(Section):
    """The options of one method instance; the class of its kind in `methods/` has its own."""

    kind: str
    """File of `methods/` that says what the method is; absent: the instance's name."""

    def check(self, recipe: Recipe) -> None:
        """Raises ValueError where the options do not fit the rest of the recipe."""
