"""`soup`: stage 4."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated

from pydantic import Field, model_validator

from vcsoup_dist.recipe.section import Section

Bound = Annotated[float, Field(ge=-10, le=10)]


class Soup(Section):
    """Stage 4. theta(lambda) = sum of lambda_i theta_i over the trained policies, lambda on the
    simplex; with `box` theta_0 + sum of lambda_i (theta_i - theta_0), whatever their sum."""

    grid: float | None = Field(None, ge=1e-6, le=1)
    """Step of the grid; where neither `grid` nor `weights` is given 0.1, and 0.25 in a `box`."""
    weights: list[list[float]] | None = Field(None, min_length=1)
    """Weight vectors of your own, in the order of the values that have data."""
    box: list[Bound] | None = None
    """Soups beyond the simplex: the bounds of every lambda_i, such as [0, 1]. All of the box's grid
    but lambda = 0, which is theta_0; or the `weights`, which then need not sum to 1."""
    max_soups: int = Field(100, ge=1)
    """A grid with more points is refused."""
    shard_size: int = Field(5_000_000_000, ge=1024)
    """Bytes per safetensors file."""
    memory: int = Field(1 << 30, ge=1 << 20)
    """Bytes that the merger may hold."""

    @property
    def step(self) -> float:
        """Of the grid, where no weights are listed."""
        if self.grid is not None:
            return self.grid
        return 0.1 if self.box is None else 0.25

    def grid_size(self, values: int) -> int:
        """Soups of so many policies on the grid. Raises ValueError for a step that does not fit."""
        low, high = self.box or (0, 1)
        steps = round((high - low) / self.step)
        if not steps or abs(steps * self.step - (high - low)) > 1e-9:
            raise ValueError(f"soup.grid: {self.step} does not divide {high - low:g}")
        if self.box is None:
            return math.comb(steps + values - 1, values - 1)
        to_zero = Fraction(str(-low)) * steps / (Fraction(str(high)) - Fraction(str(low)))
        has_theta_0 = 0 <= to_zero <= steps and to_zero.denominator == 1
        return int((steps + 1) ** values) - has_theta_0

    @model_validator(mode="after")
    def _one_source(self) -> Soup:
        if self.grid is not None and self.weights is not None:
            raise ValueError("give `grid` or `weights`, not both")
        box = [0, 1] if self.box is None else self.box
        if len(box) != 2 or box[0] >= box[1]:
            raise ValueError(f"box: needs a lower and a higher bound, such as [0, 1]; got {box}")
        low, high = box
        for i, row in enumerate(self.weights or []):
            if self.box is None and abs(math.fsum(row) - 1) > 1e-6:
                raise ValueError(
                    f"weights[{i}] must sum to 1, got {row}; with `box: [0, 1]` theta_0 takes what "
                    "is left of 1"
                )
            if any(w < low or w > high for w in row):
                raise ValueError(f"weights[{i}] must lie in [{low:g}, {high:g}], got {row}")
            if not any(row):
                raise ValueError(f"weights[{i}] is theta_0, evaluated anyway; leave it out")
        return self
