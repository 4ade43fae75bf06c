"""`soup`: stage 4."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from vcsoup_dist.recipe.section import Section


class Soup(Section):
    """Stage 4. theta(lambda) = sum of lambda_i theta_i over the trained policies."""

    grid: float | None = Field(None, ge=1e-6, le=1)
    """Step of the simplex grid; 0.1 where neither `grid` nor `weights` is given."""
    weights: list[list[float]] | None = Field(None, min_length=1)
    """Weight vectors of your own, in the order of the values that have data."""
    max_soups: int = Field(100, ge=1)
    """A grid with more points is refused."""
    shard_size: int = Field(5_000_000_000, ge=1024)
    """Bytes per safetensors file."""
    memory: int = Field(1 << 30, ge=1 << 20)
    """Bytes that the merger may hold."""

    @model_validator(mode="after")
    def _one_source(self) -> Soup:
        if self.grid is not None and self.weights is not None:
            raise ValueError("give `grid` or `weights`, not both")
        for i, row in enumerate(self.weights or []):
            if abs(math.fsum(row) - 1) > 1e-6 or any(w < 0 or w > 1 for w in row):
                raise ValueError(f"weights[{i}] must lie in [0, 1] and sum to 1, got {row}")
        return self
