"""Whether runs compare, and what a reader must know of how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.report.comparing.finished import FinishedRun
from vcsoup_dist.report.headline import FEW_SEEDS, listed
from vcsoup_dist.report.limits import unequal_seeds


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Raises UserError where a run has other values or other rewards than the first."""
    first = runs[0]
    for run in runs[1:]:
        if set(run.summary.values) != set(first.summary.values):
            raise UserError(
                f"{run.name}: its values are {', '.join(run.summary.values)}, those of "
                f"{first.name} {', '.join(first.summary.values)}; only runs with the same values "
                "compare"
            )
        for value in first.summary.values:
            judges = [each.made_from["judges"][value] for each in (first, run)]
            if not _same_reward(*judges):
                raise UserError(
                    f"{run.name}: another reward judges `{value}` than in {first.name}; name the "
                    f"same one as values.{value}.judge and run it again"
                )


def differences(runs: Sequence[FinishedRun]) -> list[str]:
    """Sentences on prompts, settings of the evaluation, theta_0 and seeds that differ."""
    first, found = runs[0], []
    for run in runs[1:]:
        shared = len(set(run.prompts) & set(first.prompts))
        if run.prompts != first.prompts:
            found.append(
                f"{run.name} answers other prompts than {first.name} ({shared} of "
                f"{len(run.prompts)} are the same): differences are unpaired, with wider intervals."
            )
        ours, theirs = (each.made_from["evaluation"] for each in (first, run))
        keys = [key for key in ours if ours[key] != theirs.get(key) and key != "prompts"]
        found += [
            f"evaluation.{key} is {ours[key]} in {first.name} and {theirs.get(key)} in {run.name}."
            for key in keys
        ]
        if run.made_from["model"] != first.made_from["model"]:
            found.append(f"{run.name} starts from another model than {first.name}.")
        elif run.sft != first.sft:
            found.append(
                f"theta_0 of {run.name} is made from another model, data or SFT settings than that "
                f"of {first.name}."
            )
    seeds = {
        f"{method.method} of {run.name}": len(method.hypervolume_by_seed)
        for run in runs
        for method in run.summary.methods
    }
    if single := [name for name, count in seeds.items() if count == 1]:
        found.append(
            f"There is one seed of {listed(single)}: the intervals do not show how much another "
            "training run would differ."
        )
    if any(1 < count < FEW_SEEDS for count in seeds.values()):
        found.append(f"Fewer than {FEW_SEEDS} seeds make a weak claim.")
    return found + unequal_seeds(seeds)


def _same_reward(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """By their settings and content, wherever they lie.

    Of a function's folder, files that only one run has are ignored: equal code cannot import them.
    """
    both = [dict(ours), dict(theirs)]
    if all("code" in each and "callable" in each for each in both):
        common = set(both[0]["code"]) & set(both[1]["code"])
        for each in both:
            each["callable"] = PurePath(each["callable"]).name
            each["code"] = {name: each["code"][name] for name in common}
    return both[0] == both[1]
