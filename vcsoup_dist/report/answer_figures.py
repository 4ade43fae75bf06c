"""Length, repetition and log-ratio to theta_0 of every row's answers, and what to warn of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vcsoup_dist.records.answer_figures import (
    MANY,
    REPEATS,
    AnswerFigures,
    CandidateAnswers,
    LengthEffect,
)
from vcsoup_dist.records.answers import Answers
from vcsoup_dist.records.summary import Row, Summary
from vcsoup_dist.report.lengths import length_effect
from vcsoup_dist.report.tables import soup_label


def answer_figures(summary: Summary, answers: Mapping[str, Answers]) -> AnswerFigures:
    """The figures of every row; answers: by name of the evaluation, to the same prompts."""
    names = [name for row in summary.rows for name in row.names]
    tokens = np.array([answers[name].tokens for name in names], dtype=np.float64)
    effects: dict[str, LengthEffect] = {}
    adjusted: dict[str, dict[str, float | None]] = {}
    for value in summary.values:
        rewards = np.array([answers[name].rewards[value] for name in names], dtype=np.float64)
        effects[value], at_mean = length_effect(
            rewards, tokens, summary.resamples, summary.confidence
        )
        adjusted[value] = dict(zip(names, at_mean, strict=True))
    return AnswerFigures(
        rows=tuple(_of_row(row, answers, adjusted) for row in summary.rows),
        effects=effects,
        is_kl=all(all(answers[name].drawn_from_model) for name in names),
    )


def _of_row(
    row: Row,
    answers: Mapping[str, Answers],
    adjusted: Mapping[str, Mapping[str, float | None]],
) -> CandidateAnswers:
    own = [answers[name] for name in row.names]
    ratio, error = _mean_and_error(
        np.mean([np.subtract(each.logp, each.logp_theta_0) for each in own], axis=0)
    )
    return CandidateAnswers(
        method=row.method,
        weights=row.weights,
        names=row.names,
        tokens=float(np.mean([each.tokens for each in own])),
        unfinished=1 - float(np.mean([each.finished for each in own])),
        repeating=float(np.mean([np.array(each.repeated) > REPEATS for each in own])),
        log_ratio=ratio,
        log_ratio_error=error,
        rewards={value: cell.mean for value, cell in row.cells.items()},
        adjusted={value: _mean([of[name] for name in row.names]) for value, of in adjusted.items()},
    )


def _mean_and_error(numbers: np.ndarray) -> tuple[float | None, float | None]:
    """Of one number per prompt; neither where one is not finite."""
    if not np.isfinite(numbers).all():
        return None, None
    count = len(numbers)
    error = float(np.std(numbers, ddof=1) / np.sqrt(count)) if count > 1 else None
    return float(np.mean(numbers)), error


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [each for each in numbers if each is not None]
    return sum(known) / len(known) if known else None


def answer_warnings(summary: Summary, figures: AnswerFigures) -> list[str]:
    """Sentences on methods with a candidate of which more than a tenth is unfinished or repeats."""
    found = []
    for method in dict.fromkeys(row.method for row in summary.rows):
        own = [
            pair
            for pair in zip(summary.rows, figures.rows, strict=True)
            if pair[0].method == method
        ]
        for share, what, remedy in (
            ("unfinished", "did not end within the limit", UNFINISHED),
            ("repeating", "repeat themselves", REPEATING),
        ):
            row, worst = max(own, key=lambda pair: getattr(pair[1], share))
            if getattr(worst, share) <= MANY:
                continue
            above = sum(getattr(each, share) > MANY for _, each in own)
            most = f"{100 * getattr(worst, share):.0f} % of the answers"
            if method is None:
                found.append(f"theta_0: {most} {what}. {remedy}")
                continue
            found.append(
                f"{soup_label(row)}: {most} {what}; {above} of the {len(own)} candidates of "
                f"{method} {'has' if above == 1 else 'have'} more than a tenth of such answers. "
                f"{remedy}"
            )
    return found


UNFINISHED = "Rewards of cut answers say little: raise evaluation.max_new_tokens."
REPEATING = "Read some answers before trusting their rewards."
