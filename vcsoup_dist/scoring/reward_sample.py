"""What a reward does with the first pairs of its value's data: figures, and what is odd in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.forward.answer_text import DROPPED
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.records.scores import ROUNDING
from vcsoup_dist.scoring.reward_findings import Finding
from vcsoup_dist.scoring.rewards import Scored

ENOUGH = 20  # pairs from which shares and correlations say something
FAR_BELOW_HALF = 0.35
STRONG = 0.6  # correlation
SIGNS = {1: "a cost needs `sign: -1`", -1: "is it a cost, as `sign: -1` says"}
MANY = 0.5  # of the pairs, as ties or the same tokens


@dataclass(frozen=True)
class Sample:
    """One reward over P pairs."""

    pairs: int
    scored: int
    """Pairs of which both answers have a reward."""
    reason: str
    """Why the first of the others has none."""
    right: int
    """Scored pairs whose chosen answer has the higher reward."""
    ties: int
    """Scored pairs whose rewards are equal but for rounding."""
    length: float | None
    """Correlation of the reward with the answer's length in characters; None where one of them
    does not vary."""
    equal: int
    """Pairs whose answers are the same tokens."""
    cut: int
    """Texts, prompt and answer, that are longer than the limit."""
    dropped: int
    """Answers of which the template drops a part."""
    constant: bool
    fickle: tuple[float, float] | None
    """The first reward that was another one when the same text was scored again, and that."""

    def rows(self) -> dict[str, str]:
        """The figures as a person should see them."""
        decided = self.scored - self.ties
        return {
            "pairs looked at": str(self.pairs),
            "without a reward": str(self.pairs - self.scored),
            "agrees with the labels": f"{100 * self.right / decided:.0f} %" if decided else "-",
            "ties": str(self.ties),
            "correlation with length": "-" if self.length is None else f"{self.length:+.2f}",
            "same tokens on both sides": str(self.equal),
            "cut at the length limit": str(self.cut),
            "answers partly dropped": str(self.dropped),
            "the same when asked again": "no" if self.fickle else "yes",
        }


def take_sample(
    pairs: Sequence[Pair],
    scored: Scored,
    again: NDArray[np.float64],
    column: int,
    tolerance: float = ROUNDING["fp32"],
    rounding: float = ROUNDING["fp32"],
) -> Sample:
    """The figures of reward `column` over P pairs.

    scored: of the texts chosen_0, rejected_0, chosen_1, ...; again [n, V]: of the first n of them,
    scored once more. tolerance: the share of the largest reward by which they may differ;
    rounding: that below which all are one.
    """
    rewards = scored.rewards[: 2 * len(pairs), column]
    seen = np.isfinite(rewards)
    seen[[i for i in scored.dropped if i < len(seen)]] = False
    whole = seen.reshape(-1, 2).all(axis=1)
    sides = rewards.reshape(-1, 2)[whole]
    lengths = np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs])[whole]
    spread = float(sides.std()) if len(sides) else 0.0
    tie = np.isclose(sides[:, 0], sides[:, 1], rtol=ROUNDING["fp32"], atol=1e-12 * spread)
    vary = spread > 0 and lengths.std() > 0
    first = scored.first
    reasons = [scored.failures.get(i, DROPPED) for i in np.flatnonzero(~seen).tolist()]
    before = rewards[: len(again)]
    known = rewards[np.isfinite(rewards)]  # also of answers that were not seen whole
    slack = tolerance * float(np.abs(known).max()) if len(known) else 0.0
    moved = np.abs(before - again[:, column]) > slack
    moved |= np.isfinite(before) != np.isfinite(again[:, column])
    changed = np.flatnonzero(moved).tolist()
    return Sample(
        pairs=len(pairs),
        scored=int(whole.sum()),
        reason=reasons[0] if reasons else "",
        right=int(((sides[:, 0] > sides[:, 1]) & ~tie).sum()),
        ties=int(tie.sum()),
        length=float(np.corrcoef(sides.ravel(), lengths.ravel())[0, 1]) if vary else None,
        equal=sum(first[2 * i] == first[2 * i + 1] for i in range(len(pairs) if first else 0)),
        cut=scored.truncated,
        dropped=sum(i < 2 * len(pairs) for i in scored.dropped),
        constant=len(sides) > 1 and spread <= rounding * float(np.hypot(sides.mean(), spread)),
        fickle=(float(before[changed[0]]), float(again[changed[0], column])) if changed else None,
    )


def sample_findings(
    sample: Sample, value: str, most_unscored: float, sign: int = 1
) -> list[Finding]:
    """What is odd in the figures.

    most_unscored: the share of pairs that may lack a reward; sign: of the reward, by the recipe.
    """
    found = []
    missing = sample.pairs - sample.scored
    if missing:
        grave = missing > most_unscored * sample.pairs
        what = f"no reward of {missing} of {sample.pairs} pairs by {value}: {sample.reason}"
        found.append(Finding(grave, what))
    if sample.fickle:
        one, other = sample.fickle
        found.append(
            Finding(True, f"{value} gives the same text {one:.4g}, and asked again {other:.4g}")
        )
    if sample.constant:
        found.append(
            Finding(True, f"{value} gives every answer the same reward, but for rounding at most")
        )
    elif sample.ties > MANY * sample.scored:
        found.append(
            Finding(
                False,
                f"the reward of {value} is the same for both answers in {sample.ties} of "
                f"{sample.scored} pairs",
            )
        )
    if sample.equal:
        found.append(
            Finding(
                sample.equal > MANY * sample.pairs,
                f"the two answers of {sample.equal} of {sample.pairs} pairs are the same tokens: "
                "max_length or the template cuts what tells them apart",
            )
        )
    decided = sample.scored - sample.ties
    if decided >= ENOUGH and sample.right < FAR_BELOW_HALF * decided:
        found.append(
            Finding(
                False,
                f"{value} prefers the chosen answer in {sample.right} of {decided} pairs only: "
                f"{SIGNS[sign]}; or is it another `output`, or another value's data?",
            )
        )
    if decided >= ENOUGH and sample.length is not None and abs(sample.length) >= STRONG:
        longer = "longer" if sample.length > 0 else "shorter"
        found.append(
            Finding(
                False,
                f"the reward of {value} goes by length (correlation {sample.length:+.2f}): "
                f"{longer} answers have more of it",
            )
        )
    return found
