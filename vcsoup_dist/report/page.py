"""The report: one self-contained HTML page, without scripts and without anything from elsewhere."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from vcsoup_dist.records.answer_figures import MANY, REPEATS
from vcsoup_dist.report.below_reference import below_reference
from vcsoup_dist.report.headline import headline, listed
from vcsoup_dist.report.method_styles import method_styles
from vcsoup_dist.report.numbers import decimals_for, fixed, number
from vcsoup_dist.report.page_data import ReportData
from vcsoup_dist.report.pick_command import pick_command

SECTIONS = {
    "front": "Front",
    "soups": "Soups",
    "lengths": "Length, repetition, distance from θ₀",
    "hypervolume": "Hypervolume",
    "start": "Against θ₀",
    "cost": "Cost",
    "connectivity": "Between two policies",
    "data": "Data",
    "consistency": "Consistency",
    "flow": "From file to gradient",
    "training": "Training",
    "prompts": "Evaluation prompts",
    "answers": "Answers",
    "reproduce": "Reproduce",
}
"""Template and anchor of each section -> its heading."""

UNFIT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Controls that HTML forbids, and lone surrogates, which no file can hold."""


def render(data: ReportData) -> str:
    """The page as text, to be written as UTF-8. Deterministic; everything in `data` is escaped."""
    summary = data.summary
    spans = {
        value: summary.scale.high[value] - summary.scale.low[value] for value in summary.values
    }
    page = TEMPLATES.get_template("report.html").render(
        vars(data),
        sections={
            name: each for name, each in SECTIONS.items() if name != "answers" or data.samples
        },
        headline=headline(summary),
        below=below_reference(summary),
        listed=listed,
        styles=method_styles(summary),
        pick_command=pick_command("recipe.yaml", summary),
        repeats=REPEATS,
        many=MANY,
        confidence=f"{100 * summary.confidence:g} %",
        decimals={value: decimals_for(span) for value, span in spans.items()},
        best_means={v: max(row.cells[v].mean for row in summary.rows) for v in summary.values},
        metrics=list(dict.fromkeys(name for each in data.trained for name in each.last)),
        seen_prompts=list(
            dict.fromkeys(seen for each in data.prompts for seen in each.in_training)
        ),
    )
    return UNFIT.sub("\N{REPLACEMENT CHARACTER}", page)


def _most_frequent(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Reasons or patterns and their counts, the most frequent first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _shortened(prompt: str, letters: int = 200) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= letters else line[:letters].rstrip() + " …"


TEMPLATES = Environment(
    loader=PackageLoader("vcsoup_dist.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "base64": lambda data: b64encode(data).decode("ascii"),
    "fixed": fixed,
    "most_frequent": _most_frequent,
    "number": number,
    "shortened": _shortened,
}
