"""The tables of the study's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

JUDGES = {"classifiers": "classifiers of the judges' fold", "words": "words without their number"}


def as_markdown(results: Mapping[str, Any]) -> str:
    """The tables of the page."""
    lines = ["### Planned differences in hypervolume", "", *_contrast_table(results["contrasts"])]
    lines += ["", "### Exploratory: on a scale of all candidates", ""]
    lines += [*_contrast_table(results["exploratory: on a scale of all candidates"]), ""]
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


def _contrast_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        "| first − second | equal | candidates | classifiers | words | detectable | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['first']} − {row['second']} | {row['kind']} | "
            f"{' : '.join(map(str, row['candidates']))} | {_interval(row['classifiers'])} | "
            f"{_interval(row['words'])} | {row['classifiers']['detectable']:.3f} | "
            f"{row['verdict']} |"
            for row in rows
        ),
    ]


def _interval(numbers: Mapping[str, float]) -> str:
    return f"{numbers['difference']:+.3f} [{numbers['low']:+.3f}, {numbers['high']:+.3f}]"


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
