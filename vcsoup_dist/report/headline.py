"""The result in a few sentences: no winner is named where the intervals do not support one."""

from __future__ import annotations

from collections.abc import Sequence

from vcsoup_dist.records.summary import AgainstStart, Comparison, Comparisons, Summary
from vcsoup_dist.report.numbers import decimals_for, number
from vcsoup_dist.report.tables import mixture

SIGNS = 3  # decimals of a hypervolume
FEW_SEEDS = 8  # below it, how much training runs differ is known badly
CHOSEN = (
    " It was chosen for its figures on these prompts, so they tend to be too high; the intervals do"
    " not count the choice."
)


def headline(summary: Summary) -> list[str]:
    """Who is ahead in hypervolume, what the balanced candidate is, and how it stands to theta_0."""
    return [*_hypervolumes(summary), _balanced(summary)]


def bracket(low: float | None, high: float | None, decimals: int) -> str:
    """An interval, ` [0.1, 0.2]`; nothing where there is none."""
    return "" if low is None else f" [{number(low, decimals)}, {number(high, decimals)}]"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _hypervolumes(summary: Summary) -> list[str]:
    if summary.comparisons is None:
        return ["No soup was evaluated, only θ₀."]
    if not summary.comparisons.pairs:
        (only,) = summary.methods
        corrected = number(only.corrected, SIGNS)
        interval = bracket(only.hypervolume_low, only.hypervolume_high, SIGNS)
        on_front = f"{len(only.front)} of its {len(only.rows)} candidates are on its front"
        return [f"{only.method} reaches a hypervolume of {corrected}{interval}; {on_front}."]
    return [*_leader(summary), _how_compared(summary, summary.comparisons)]


def _leader(summary: Summary) -> list[str]:
    """The method with the largest hypervolume against each other one."""
    assert summary.comparisons is not None
    leader = next(iter(summary.comparisons.hypervolumes))
    pairs = [pair for pair in summary.comparisons.pairs if pair.first == leader]
    ahead = [f"{pair.second} by {_by(pair)}" for pair in pairs if pair.differs]
    tied = [pair for pair in pairs if not pair.differs]
    if not tied:
        who = (
            f"{leader} has" if _fewest_seeds(summary) > 1 else f"Of these policies, {leader}'s have"
        )
        return [f"{who} the largest hypervolume, ahead of {listed(ahead)}."]
    names = listed([leader, *(pair.second for pair in tied)])
    leads = listed(
        [(f"{pair.second} " if len(tied) > 1 else "") + f"by {_by(pair)}" for pair in tied]
    )
    found = [f"{names} cannot be told apart by hypervolume: {leader} leads {leads}."]
    return found + ([f"{leader} is ahead of {listed(ahead)}."] if ahead else [])


def _fewest_seeds(summary: Summary) -> int:
    return min(len(method.hypervolume_by_seed) for method in summary.methods)


def _by(pair: Comparison) -> str:
    return number(pair.difference, SIGNS) + bracket(pair.low, pair.high, SIGNS)


def _how_compared(summary: Summary, comparisons: Comparisons) -> str:
    count, seeds = len(comparisons.pairs), _fewest_seeds(summary)
    pairs = "The two are" if count == 1 else f"{count} pairs are"
    interval = "the interval holds" if count == 1 else "all intervals hold together"
    if seeds == 1:
        claim = "; one seed says nothing of another training run"
    elif seeds < FEW_SEEDS:
        claim = f"; {seeds} seeds are few, so it is a weak claim"
    else:
        claim = ""
    at = f"at {comparisons.candidates} candidates each"
    return f"{pairs} compared {at}; {interval} with {100 * summary.confidence:g} %{claim}."


def _balanced(summary: Summary) -> str:
    best = summary.rows[summary.balanced]
    decimals = {
        value: decimals_for(summary.scale.high[value] - summary.scale.low[value])
        for value in summary.values
    }
    if best.method is None:
        means = [f"{v} {number(cell.mean, decimals[v])}" for v, cell in best.cells.items()]
        return f"Nothing is more balanced than θ₀ itself: {', '.join(means)}."
    shown = []
    for value, cell in best.cells.items():
        text = f"{value} {number(cell.mean, decimals[value])}"
        if gain := summary.balanced_against_start.get(value):
            start = number(cell.mean - gain.difference, decimals[value])
            text += f" (θ₀ {start}: {_against(gain, decimals[value])})"
        shown.append(text)
    name = f"{best.method} at {mixture(best.weights, '.2f')}"
    picked = CHOSEN if len(summary.rows) > 2 else ""
    return f"The balanced soup is {name}: {', '.join(shown)}.{picked}"


def _against(gain: AgainstStart, decimals: int) -> str:
    interval = bracket(gain.low, gain.high, decimals)
    if gain.low is not None and gain.low > 0:
        return f"above by {number(gain.difference, decimals)}{interval}"
    if gain.high is not None and gain.high < 0:
        return f"below by {number(-gain.difference, decimals)}" + bracket(
            -gain.high, -(gain.low or 0.0), decimals
        )
    return f"cannot be told apart, difference {number(gain.difference, decimals)}{interval}"
