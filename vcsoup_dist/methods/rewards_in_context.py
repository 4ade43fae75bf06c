"""RiC, its first stage (arXiv 2402.10207): SFT on answers whose prompts say their rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from vcsoup_dist.in_context.prompts import default_template, template_fault
from vcsoup_dist.methods.method import Candidate, Method, PairSet, Policy, trade_offs
from vcsoup_dist.recipe.training import OF_PAIRS, Training
from vcsoup_dist.records.in_context import AskedScores, Bounds, Place, ScorePrompt

if TYPE_CHECKING:
    from vcsoup_dist.recipe.recipe import Recipe

POLICY = "union"


class RewardsInContext(Method):
    """One policy for all trade-offs of `reweighting`: lambda chooses the scores in its prompts."""

    template: str | None = Field(None, min_length=1)
    """Text with `{NAME}` where the score of the value NAME stands; absent: `Scores of the answer:
    NAME {NAME}, ...`."""
    place: Place = "end"
    """`end`: the text comes after the last user message. `system`: into the system message."""
    bounds: Bounds = (0.01, 0.99)
    """The scores that weights of 0 and 1 ask for: two quantiles of the training answers' scores, or
    as published `gaussian`, the extremes of 50,000 normal draws, about -4 and 4."""

    @field_validator("bounds", mode="before")
    @classmethod
    def _are_two(cls, bounds: object) -> object:
        if bounds != "gaussian" and not (isinstance(bounds, list | tuple) and len(bounds) == 2):
            raise ValueError("give two quantiles, such as [0.01, 0.99], or `gaussian`")
        return bounds

    @field_validator("bounds")
    @classmethod
    def _are_in_order(cls, bounds: Bounds) -> Bounds:
        if bounds != "gaussian" and not 0 <= bounds[0] < bounds[1] <= 1:
            raise ValueError("give two quantiles in [0, 1], the lower first")
        return bounds

    def training(self, recipe: Recipe) -> Training:
        """SFT on as many answers a step as pairs have, for the steps of all values' policies."""
        common = super().training(recipe)
        steps = None if common.steps is None else common.steps * len(recipe.trained_values())
        own = {"objective": "sft", "pairs_per_step": 2 * common.pairs_per_step, "steps": steps}
        return Training.model_validate(common.model_dump(exclude=OF_PAIRS) | own)

    def check(self, recipe: Recipe) -> None:
        """Raises ValueError where the template lacks a value's score, or beta is given."""
        if self.beta is not None:
            raise ValueError("is trained by SFT, which has no beta; take it out")
        how = self._scores(recipe)
        if fault := template_fault(how.template, how.values):
            raise ValueError(f"template: {fault}")

    def notes(self, recipe: Recipe) -> list[str]:
        """Which part of the published method it is."""
        return ["it is RiC's offline stage; the paper's results also have its online stage"]

    def pairs(self, recipe: Recipe) -> list[PairSet]:
        """None of its own."""
        return []

    def policies(self, recipe: Recipe) -> list[Policy]:
        """The one."""
        return [Policy(POLICY, (), None, scores=self._scores(recipe))]

    def candidates(self, recipe: Recipe) -> list[Candidate]:
        """The policy, asked for each trade-off."""
        how = self._scores(recipe)
        return [
            Candidate(weights, (POLICY,), False, AskedScores(how, self.bounds, weights))
            for weights in trade_offs(recipe)
        ]

    def _scores(self, recipe: Recipe) -> ScorePrompt:
        values = recipe.trained_values()
        template = default_template(values) if self.template is None else self.template
        return ScorePrompt(template, self.place, values)


METHOD = RewardsInContext
