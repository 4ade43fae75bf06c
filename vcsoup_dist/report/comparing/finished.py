"""A finished run, as its run directory has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vcsoup_dist.errors import UserError
from vcsoup_dist.records.answers import Answers
from vcsoup_dist.records.summary import SUMMARY, Row, Summary
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.workspace import RECORD


@dataclass(frozen=True)
class FinishedRun:
    """What a run's report is made from."""

    name: str
    """How the comparison calls it."""
    summary: Summary
    evaluated: tuple[Evaluated, ...]
    """Rewards in the order of `prompts`."""
    prompts: tuple[str, ...]
    """Their ids, which are of their content, in rising order."""
    made_from: dict[str, Any]
    """Of theta_0's evaluation: the judges, the settings, the model."""
    sft: str | None
    """Fingerprint of the theta_0 that SFT made; None where it is the recipe's model."""


def read_runs(roots: Sequence[Path]) -> list[FinishedRun]:
    """Of run directories; UserError where one is not finished, or is given twice."""
    names = [root.name for root in roots]
    if len(set(names)) < len(names):
        names = [str(root) for root in roots]
    for place, root in enumerate(roots):
        if root.resolve() in [each.resolve() for each in roots[:place]]:
            raise UserError(f"{root}: given twice; name runs that differ")
    return [read_run(root, name) for root, name in zip(roots, names, strict=True)]


def read_run(root: Path, name: str) -> FinishedRun:
    """Of one run directory; UserError where it has no report of the answers that it has now."""
    if not (root / "report" / SUMMARY).is_file():
        raise UserError(f"{root}: has no report yet; finish the run with `vcsoup run` first")
    reported = _record(root / "report")["inputs"]
    summary = Summary.read(root / "report")
    found, prompts = [], None
    for row in summary.rows:
        for place, evaluation in enumerate(row.names):
            answers = _answers(root, evaluation)
            order = np.argsort(answers.prompt_ids, kind="stable")
            ids = tuple(answers.prompt_ids[i] for i in order)
            if prompts not in (None, ids):
                raise UserError(f"{root}: its evaluations answer different prompts; run it again")
            prompts = ids
            found.append(_evaluated(row, place, answers, order.tolist(), summary.values))
    if not any(row.method is None for row in summary.rows):
        raise UserError(f"{root}: theta_0 was not evaluated; run it again")
    # After the answers: an evaluation may be published while they are read.
    records = {each.name: _record(root / each.name) for each in found}
    for evaluation, record in records.items():
        if record["fingerprint"] != reported.get(evaluation):
            raise UserError(
                f"{root}: the report is not of the answers in {evaluation}; run `vcsoup report "
                f"{root}` first"
            )
    base = next(records[row.names[0]] for row in summary.rows if row.method is None)
    sft = base["inputs"].get("theta_0")
    return FinishedRun(name, summary, tuple(found), prompts or (), base["made_from"], sft)


def _answers(root: Path, evaluation: str) -> Answers:
    try:
        return Answers.read(root / evaluation)
    except FileNotFoundError:
        raise UserError(
            f"{root / evaluation}: the answers that the report is made from are gone; finish the "
            "run with `vcsoup run` first"
        ) from None


def _evaluated(
    row: Row, place: int, answers: Answers, order: Sequence[int], values: Sequence[str]
) -> Evaluated:
    return Evaluated(
        row.names[place],
        row.method,
        row.seeds[place] if row.method is not None else None,
        row.weights,
        {value: answers.rewards[value][order] for value in values},
    )


def _record(product: Path) -> dict[str, Any]:
    try:
        content = json.loads((product / RECORD).read_text())
        return {key: content[key] for key in ("fingerprint", "made_from", "inputs")}
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise UserError(f"{product / RECORD}: unreadable ({error}); run it again") from None
