"""`consistency`: stage 2."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vcsoup_dist.recipe.section import Section

Rule = Literal["threshold", "ratio", "all_positive", "random"]


class Consistency(Section):
    """Stage 2. c = cos(g, 1), with the gaps g_j = (r_j(chosen) - r_j(rejected)) / s_j."""

    normalisation: Literal["zscore", "gap_std", "robust", "none"] = "zscore"
    """s_j: standard deviation of the rewards (chosen and rejected pooled), of the gaps, the median
    absolute deviation of the rewards (scaled to a normal's std), or 1."""
    scope: Literal["dataset", "all"] = "dataset"
    """Over what s_j is taken: each dataset by itself, or all datasets together."""
    rule: Rule = "threshold"
    """What `vc_soup` keeps: c >= threshold; the best share by c; all gaps > 0; a random share."""
    threshold: float = Field(0.0, ge=-1, le=1)
    """The same threshold means different things for different numbers of values: docs/method.md."""
    ratio: float | None = Field(None, gt=0, le=1)
    """Share kept by the rules `ratio` and `random`."""
    min_norm: float = Field(0.0, ge=0)
    """Pairs with a shorter gap vector are dropped: the cosine does not see magnitude."""

    @model_validator(mode="after")
    def _ratio_given(self) -> Consistency:
        if self.rule in ("ratio", "random") and self.ratio is None:
            raise ValueError(f"rule `{self.rule}` needs the key `ratio`")
        return self
