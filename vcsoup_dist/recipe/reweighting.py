"""`reweighting`: the trade-offs of the methods that train a policy for each."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from vcsoup_dist.recipe.section import Section


class Reweighting(Section):
    """The trade-offs lambda of `relabelled`, `loss_weighting`, `scalarised` and `modpo`: a policy
    is trained for each of them, so the grid is coarser than that of soups. `rewards_in_context`
    asks its one policy for each of them."""

    grid: float = Field(0.25, ge=1e-6, le=1)
    """Step of the simplex grid."""
    weights: list[list[float]] | None = Field(None, min_length=1)
    """Trade-offs of your own in place of a grid, in the order of the values that have data."""
    modpo_value: str | None = None
    """The value whose pairs `modpo` trains on; absent: the first that has data."""

    @model_validator(mode="after")
    def _on_the_simplex(self) -> Reweighting:
        for i, row in enumerate(self.weights or []):
            if abs(math.fsum(row) - 1) > 1e-6 or any(w < 0 or w > 1 for w in row):
                raise ValueError(f"weights[{i}] must lie in [0, 1] and sum to 1, got {row}")
        steps = round(1 / self.grid)
        if abs(steps * self.grid - 1) > 1e-9:
            raise ValueError(f"grid: {self.grid} does not divide 1")
        return self
