"""The numbers of the study from a finished run: results.json, tables.md, *.svg."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import contrasts
import figures
import numpy as np
import tables
import words
from contrasts import Contrast
from stage_seconds import seconds_by_stage

from vcsoup_dist.files import write_atomically
from vcsoup_dist.records.answer_figures import AnswerFigures
from vcsoup_dist.records.answers import Answers
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.summary import Scale, Summary
from vcsoup_dist.report.comparing.finished import read_run
from vcsoup_dist.report.statistics import fronts
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.report.statistics.rows import gains_of
from vcsoup_dist.report.statistics.summarise import summarise

METHODS = ("rewarded_soup", "vc_soup", "strict", "random", "scalarised")
MIDDLE = (0.5, 0.5)


def write(run_dir: Path, out: Path, folder: Path) -> None:
    """Everything that the study says of a run on real data."""
    evaluated = {"classifiers": list(read_run(run_dir, run_dir.name).evaluated)}
    evaluated["words"] = judged_by_words(run_dir, evaluated["classifiers"], out)
    summaries = {
        judge: summarise(rows, resamples=contrasts.RESAMPLES, confidence=contrasts.CONFIDENCE)
        for judge, rows in evaluated.items()
    }
    planned = {judge: contrasts.planned(rows) for judge, rows in evaluated.items()}
    wide = {
        judge: contrasts.differences(rows, whole_scale(summaries[judge]))
        for judge, rows in evaluated.items()
    }
    results = {
        "seconds": seconds_by_stage([run_dir]),
        "prompts": summaries["words"].prompts,
        "scales": {judge: asdict(summary.scale) for judge, summary in summaries.items()},
        "contrasts": judged(planned),
        "exploratory: on a scale of all candidates": judged(wide),
        "middle": {judge: middle_against_start(rows) for judge, rows in evaluated.items()},
        "answers": answers_of_methods(run_dir),
        "kept": kept(run_dir),
        "connectivity": {judge: drops(summary) for judge, summary in summaries.items()},
        "rewards": json.loads((out / "results" / "rewards.json").read_text()),
    }
    write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(folder / "tables.md", tables.as_markdown(results))
    figures.write(planned, summaries, METHODS, folder)


def judged(by_judge: Mapping[str, Sequence[Contrast]]) -> list[dict[str, Any]]:
    """Every difference with what both kinds of judges show, and its verdict."""
    return [
        {"first": one.first, "second": one.second, "kind": one.kind}
        | {"candidates": one.candidates, "verdict": contrasts.verdict(one, other)}
        | {"classifiers": _numbers(one), "words": _numbers(other)}
        for one, other in zip(by_judge["classifiers"], by_judge["words"], strict=True)
    ]


def _numbers(each: Contrast) -> dict[str, float]:
    return {name: getattr(each, name) for name in ("difference", "low", "high", "detectable")}


def whole_scale(summary: Summary) -> Scale:
    """Spanned by all candidates and theta_0, so that no method's own reach is the measure."""
    means = np.array([[cell.mean for cell in row.cells.values()] for row in summary.rows])
    low, high = fronts.bounds(means)
    reference = fronts.reference_point(means)

    def named(numbers: np.ndarray[Any, Any]) -> dict[str, float]:
        return dict(zip(summary.values, numbers.tolist(), strict=True))

    scaled = fronts.normalise([reference], low, high)[0]
    return Scale(named(low), named(high), named(reference), named(scaled), None, False)


def judged_by_words(run_dir: Path, evaluated: Sequence[Evaluated], out: Path) -> list[Evaluated]:
    """The same answers with the rewards of the second judges."""
    found = []
    for each in evaluated:
        answers = Answers.read(run_dir / each.name)
        order = np.argsort(answers.prompt_ids, kind="stable")  # as `read_run` orders them
        texts = [answers.texts[i] for i in order]
        rewards = {
            value: words.rewards(texts, out / "rewards" / f"words_{value}.json")
            for value in each.rewards
        }
        found.append(replace(each, rewards=rewards))
    return found


def middle_against_start(evaluated: Sequence[Evaluated]) -> dict[str, dict[str, dict[str, Any]]]:
    """Win rates and gains over theta_0 of each method's candidate of equal weights."""
    start = next(one for one in evaluated if one.method is None)
    found = {}
    for method in METHODS:
        group = [
            one
            for one in evaluated
            if one.method == method and tuple((one.weights or {}).values()) == MIDDLE
        ]
        gains = gains_of(group, start, contrasts.CONFIDENCE)
        found[method] = {value: asdict(gain) for value, gain in gains.items()}
    return found


def answers_of_methods(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Means over the candidates: tokens, unfinished, log-ratio, rewards at equal length."""
    figures = AnswerFigures.read(run_dir / "report")
    found = {}
    for method in (None, *METHODS):
        rows = [row for row in figures.rows if row.method == method]
        found[method or "theta_0"] = {
            name: _mean([getattr(row, name) for row in rows])
            for name in ("tokens", "unfinished", "repeating", "log_ratio")
        } | {
            f"{value} at equal length": _mean([row.adjusted[value] for row in rows])
            for value in rows[0].adjusted
        }
    return found


def kept(run_dir: Path) -> list[dict[str, Any]]:
    """What each filter kept, and the signs of the gaps before and after."""
    found = []
    for path in sorted((run_dir / "filtered").rglob("report.json")):
        report = FilterReport.read(path.parent)
        counts = report.counts
        found.append(
            {
                "method": report.method,
                "value": report.value,
                "pairs": counts.pairs,
                "kept": counts.kept,
                "signs": counts.sign_patterns,
                "signs kept": counts.sign_patterns_kept,
            }
        )
    return found


def drops(summary: Summary) -> dict[str, dict[str, dict[str, Any]]]:
    """How far rewards fall below the straight line between the policies, with bands."""
    return {
        edge.method: {value: asdict(drop) for value, drop in edge.drop.items()}
        for edge in summary.edges
        if edge.method != contrasts.RIVAL  # policies for trade-offs lie on no line
    }


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [each for each in numbers if each is not None]
    return float(np.mean(known)) if known else None
