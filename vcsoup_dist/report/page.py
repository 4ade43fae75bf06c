"""The report: one self-contained HTML page, without scripts and without anything from elsewhere."""

from __future__ import annotations

from vcsoup_dist.report.filter_section import filter_section
from vcsoup_dist.report.html import Html, join, paragraph, tag, text
from vcsoup_dist.report.page_data import ReportData
from vcsoup_dist.report.rewards_section import (
    edge_section,
    front_section,
    result,
    soup_section,
    volume_section,
)
from vcsoup_dist.report.run_section import (
    again_section,
    data_section,
    facts_list,
    prompt_section,
    sample_section,
    training_section,
)
from vcsoup_dist.report.style import STYLE

# Should an answer ever get past the escaping, nothing that it names is run or loaded.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

CHAPTERS = {
    "front": "Front", "soups": "Soups", "hypervolume": "Hypervolume",
    "connectivity": "Between two policies", "data": "Data", "consistency": "Consistency",
    "training": "Training", "prompts": "Prompts", "answers": "Answers", "again": "Make it again",
}  # fmt: skip


def render(data: ReportData) -> str:
    """The page as text, to be written as UTF-8. Deterministic; everything in `data` is escaped."""
    summary = data.summary
    places = {method.method: place for place, method in enumerate(summary.methods)}
    links = [
        Html(f'<a href="#{text(name)}">{text(title)}</a>')
        for name, title in CHAPTERS.items()
        if name != "answers" or data.samples
    ]
    sections = [
        front_section(summary, data.front_plot),
        soup_section(summary),
        volume_section(summary, data.hypervolume_plot),
        edge_section(summary, data.edge_plot),
        data_section(data.pairs, data.scores),
        filter_section(data.patterns, data.agreements, data.consistency_plots, summary.values),
        training_section(data.trained, places),
        prompt_section(data.prompts),
        *([sample_section(data.samples)] if data.samples else []),
        again_section(data.commands, data.recipe),
    ]
    notes = tag("div", *map(paragraph, map(text, data.notes)), css="notes")
    header = tag(
        "header",
        paragraph(text("Value-consistent soups"), css="kind"),
        tag("h1", text(data.title)),
        result(summary),
        *([notes] if data.notes else []),
        facts_list(data.facts),
        tag("nav", *links),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(data.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{header}\n<main>\n{join(sections, chr(10))}\n</main>\n</body>\n</html>\n"
    )
