"""What the prompts of a picked model must say, where it was trained on scores in prompts."""

from __future__ import annotations

from collections.abc import Sequence

from vcsoup_dist.errors import UserError
from vcsoup_dist.in_context.prompts import AddedText, added_scores
from vcsoup_dist.in_context.targets import score_bounds, standardised_answers, target_scores
from vcsoup_dist.pick.choose import Choice
from vcsoup_dist.workspace import Product, Workspace


def added_text(workspace: Workspace, plan: Sequence[Product], choice: Choice) -> AddedText | None:
    """The scores that the choice asks for, as its evaluation wrote them; None for other methods.

    UserError where the pairs that the bounds of the scores are from are not there any more.
    """
    asked = choice.candidate.asked
    if asked is None:
        return None
    unions = [each for each in plan if each.stage == "union"]
    if not unions:
        raise UserError(f"{choice.method}: the run has no `union`, which says what scores are high")
    answers = standardised_answers(workspace.need(unions[0]), asked.scores.values)
    scores = target_scores(asked.weights, score_bounds(answers, asked.bounds))
    return added_scores(asked.scores, scores)
