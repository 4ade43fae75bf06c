"""Tables and figures of the study from a finished run: results.json, tables.md, *.svg."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import contrasts
import numpy as np
import words
from matplotlib.figure import Figure

from vcsoup_dist.files import write_atomically
from vcsoup_dist.plot_style import INK, plot_style
from vcsoup_dist.records.answer_figures import AnswerFigures
from vcsoup_dist.records.answers import Answers
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.summary import Summary
from vcsoup_dist.report.comparing.finished import read_run
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.report.statistics.rows import gains_of
from vcsoup_dist.report.statistics.summarise import summarise

JUDGES = {"classifier": "classifiers of the judges' fold", "words": "words without their number"}
SVG = {"svg.hashsalt": "study", "svg.fonttype": "path"}
METHODS = ("rewarded_soup", "vc_soup", "strict", "random", "scalarised")
COLOURS = dict(zip(METHODS, ("#4c78a8", "#e45756", "#b5322f", "#8a909a", "#3f9b5b"), strict=True))
MIDDLE = (0.5, 0.5)


def write(run_dir: Path, out: Path, folder: Path) -> None:
    """Everything that the study says of a run on real data."""
    evaluated = {"classifier": list(read_run(run_dir, run_dir.name).evaluated)}
    evaluated["words"] = judged_by_words(run_dir, evaluated["classifier"], out)
    summaries = {
        judge: summarise(rows, resamples=contrasts.RESAMPLES, confidence=contrasts.CONFIDENCE)
        for judge, rows in evaluated.items()
    }
    results = {
        "contrasts": {j: contrasts.as_json(contrasts.planned(e)) for j, e in evaluated.items()},
        "middle": {judge: middle_against_start(rows) for judge, rows in evaluated.items()},
        "answers": answers_of_methods(run_dir),
        "kept": kept(run_dir),
        "connectivity": {judge: drops(summary) for judge, summary in summaries.items()},
        "rewards": json.loads((out / "results" / "rewards.json").read_text()),
    }
    write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(folder / "tables.md", as_markdown(results))
    with plot_style(SVG):
        _save(contrast_plot(results["contrasts"]), folder / "contrasts.svg")
        _save(front_plot(summaries), folder / "fronts.svg")


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
    }


def as_markdown(results: Mapping[str, Any]) -> str:
    """The tables of the page."""
    lines = []
    for judge, rows in results["contrasts"].items():
        lines += [f"### Hypervolumes, judged by {JUDGES[judge]}", ""]
        lines += ["| first - second | equal | candidates | difference | detectable | verdict |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        for row in rows:
            interval = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
            candidates = " : ".join(map(str, row["candidates"]))
            lines.append(
                f"| {row['first']} - {row['second']} | {row['kind']} | {candidates} | {interval} | "
                f"{row['detectable']:.3f} | {row['verdict']} |"
            )
        lines.append("")
    for judge, methods in results["middle"].items():
        lines += [f"### Equal weights against theta_0, judged by {JUDGES[judge]}", ""]
        lines += ["| method | value | gain | win rate |", "| --- | --- | --- | --- |"]
        for method, values in methods.items():
            for value, gain in values.items():
                lines.append(
                    f"| {method} | {value} | {gain['difference']:+.3f} [{gain['low']:+.3f}, "
                    f"{gain['high']:+.3f}] | {gain['win_rate']:.3f} [{gain['win_low']:.3f}, "
                    f"{gain['win_high']:.3f}] |"
                )
        lines.append("")
    lines += _answer_table(results["answers"])
    return "\n".join([*lines, "", *_kept_table(results["kept"]), ""])


def _kept_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        "### Pairs kept",
        "",
        "| method | value | pairs | kept | signs before | signs kept |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['method']} | {row['value']} | {row['pairs']} | {row['kept']} | "
            f"{_signs(row['signs'])} | {_signs(row['signs kept'])} |"
            for row in rows
        ),
    ]


def _signs(counts: Mapping[str, int]) -> str:
    return ", ".join(f"`{signs}` {count}" for signs, count in sorted(counts.items()))


def _answer_table(answers: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    names = list(next(iter(answers.values())))
    head = ["### Answers, mean over a method's candidates", "", f"| method | {' | '.join(names)} |"]
    return [
        *head,
        "| --- |" + " --- |" * len(names),
        *(
            f"| {method} | "
            + " | ".join("" if row[n] is None else f"{row[n]:.3g}" for n in names)
            + " |"
            for method, row in answers.items()
        ),
    ]


def contrast_plot(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """A row per planned difference, a panel per judge."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (judge, rows) in zip(
        figure.subplots(1, len(found), sharey=True), found.items(), strict=True
    ):
        for place, row in enumerate(reversed(rows)):
            axes.plot([row["low"], row["high"]], [place, place], color=INK, lw=1.4)
            axes.plot(row["difference"], place, "o", color=INK, ms=5)
        labels = [f"{row['first']} − {row['second']}\n({row['kind']})" for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), labels, fontsize=7)
        axes.axvline(0, color="#8a909a", lw=0.8)
        axes.set_title(JUDGES[judge], fontsize=9)
        axes.set_xlabel("difference in hypervolume")
    return figure


def front_plot(summaries: Mapping[str, Summary]) -> Figure:
    """Mean rewards of every candidate, a panel per judge."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (judge, summary) in zip(
        figure.subplots(1, len(summaries)), summaries.items(), strict=True
    ):
        x, y = summary.values
        for method in METHODS:
            rows = [row for row in summary.rows if row.method == method]
            rows.sort(key=lambda row: list((row.weights or {}).values()))
            points = np.array([[row.cells[x].mean, row.cells[y].mean] for row in rows])
            axes.plot(*points.T, "o-", color=COLOURS[method], ms=4, lw=1.2, label=method)
        start = next(row for row in summary.rows if row.method is None)
        axes.plot(start.cells[x].mean, start.cells[y].mean, "*", color=INK, ms=10, label="θ₀")
        axes.set_title(JUDGES[judge], fontsize=9)
        axes.set_xlabel(f"{x} reward")
        axes.set_ylabel(f"{y} reward")
    axes.legend(fontsize=7)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [each for each in numbers if each is not None]
    return float(np.mean(known)) if known else None
