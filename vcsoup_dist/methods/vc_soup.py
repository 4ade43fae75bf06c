"""VC-Soup (arXiv 2603.18113): soups of policies that were trained on consistent pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from vcsoup_dist.methods.method import SoupMethod
from vcsoup_dist.recipe.consistency import Rule
from vcsoup_dist.records.keep_rule import KeepRule

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe


class VCSoup(SoupMethod):
    """Options that are absent are as in `consistency`."""

    rule: Rule | None = None
    """What to keep; follows from `threshold` or `ratio` where one of them is given."""
    threshold: float | None = Field(None, ge=-1, le=1)
    """Keep c >= threshold."""
    ratio: float | None = Field(None, gt=0, le=1)
    """Keep the best share by c; with the rule `random`, a random share."""
    min_norm: float | None = Field(None, ge=0)
    """Drop pairs with a shorter gap vector."""

    @model_validator(mode="after")
    def _one_rule(self) -> VCSoup:
        other = self.ratio is not None or self.rule not in (None, "threshold")
        if self.threshold is not None and other:
            raise ValueError("threshold: belongs to the rule `threshold` alone")
        if self.ratio is not None and self.rule in ("threshold", "all_positive"):
            raise ValueError("ratio: belongs to the rules `ratio` and `random`")
        return self

    def check(self, recipe: Recipe) -> None:
        """Raises ValueError where the rule lacks its share."""
        rule = self.keep_rule(recipe)
        if rule.kind in ("ratio", "random") and rule.ratio is None:
            raise ValueError(f"the rule `{rule.kind}` needs the key `ratio`")

    def keep_rule(self, recipe: Recipe) -> KeepRule:
        """The instance's rule, else the recipe's."""
        common = recipe.consistency
        kind = self.rule or common.rule
        if self.rule is None and self.threshold is not None:
            kind = "threshold"
        elif self.rule is None and self.ratio is not None:
            kind = "ratio"
        threshold = common.threshold if self.threshold is None else self.threshold
        return KeepRule(
            kind,
            threshold=threshold if kind == "threshold" else None,
            ratio=(self.ratio or common.ratio) if kind in ("ratio", "random") else None,
            min_norm=common.min_norm if self.min_norm is None else self.min_norm,
        )


METHOD = VCSoup
