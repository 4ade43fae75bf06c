"""What every instance of a method has in a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from vcsoup_dist.recipe.section import Section

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe
    from vcsoup_dist.recipe.training import Training


class MethodOptions(Section):
    """The options of one method instance; the class of its kind in `methods/` has its own."""

    kind: str
    """File of `methods/` that says what the method is; absent: the instance's name."""
    learning_rate: float | None = Field(None, gt=0)
    """Of its policies; absent: `training.learning_rate`."""
    beta: float | None = Field(None, gt=0)
    """Of its policies; absent: `training.beta`."""

    def training(self, recipe: Recipe) -> Training:
        """How its policies are trained: as the recipe's, but for its own options."""
        own = {"learning_rate": self.learning_rate, "beta": self.beta}
        given = {name: value for name, value in own.items() if value is not None}
        return recipe.training.model_copy(update=given)

    def check(self, recipe: Recipe) -> None:
        """Raises ValueError where the options do not fit the rest of the recipe."""

    def notes(self, recipe: Recipe) -> list[str]:
        """What a person should know of it, a line each; the plan and the report show them."""
        return []
