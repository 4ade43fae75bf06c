"""What a summary's figures cannot say, as sentences for the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vcsoup_dist.records.summary import Summary
from vcsoup_dist.report.headline import FEW_SEEDS, listed

FEW_PROMPTS = 16  # the fewest of tools/check_intervals.py


def limits(summary: Summary, methods: Iterable[str]) -> list[str]:
    """Of few prompts, few or unequal seeds, and methods of a recipe that have no candidate."""
    found = []
    seeds = {each.method: len(each.hypervolume_by_seed) for each in summary.methods}
    if missing := [name for name in methods if name not in seeds]:
        found.append(f"No candidate of {listed(missing)} was evaluated: no figure is about it.")
    if summary.prompts == 1:
        found.append("One prompt was answered: there are no intervals, and nothing differs.")
    elif summary.prompts < FEW_PROMPTS:
        found.append(
            f"{summary.prompts} prompts are few: how often intervals hold was not checked below "
            f"{FEW_PROMPTS}."
        )
    if single := [name for name, count in seeds.items() if count == 1]:
        found.append(
            f"There is one seed of {listed(single)}. The intervals are over prompts; they do not "
            "show how much another training run would differ."
        )
    if few := [f"{name} ({count})" for name, count in seeds.items() if 1 < count < FEW_SEEDS]:
        found.append(
            f"Few seeds make a weak claim: {listed(few)}. How much training runs differ is itself "
            f"known badly below {FEW_SEEDS}, and the intervals are wide for it."
        )
    if 2 in seeds.values():
        found.append(
            "With two seeds, intervals of means that are meant for 95 % held the true number in "
            "92 % of simulated runs where training runs differ."
        )
    return found + unequal_seeds(seeds)


def unequal_seeds(seeds: Mapping[str, int]) -> list[str]:
    """What numbers of seeds by method that are not the same do to the intervals."""
    if len(set(seeds.values())) < 2:
        return []
    found = "Methods have unequal numbers of seeds: each counts as the mean of its own, and "
    if min(seeds.values()) > 1:
        return [found + "the one with fewer makes the intervals wide."]
    return [
        found + "what another training run changes of one with a single seed is in no interval. "
        "The intervals of its differences are for these policies, and too narrow for the methods."
    ]
