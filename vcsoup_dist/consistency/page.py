"""report.md of a filtered set: what is in it, and what another rule would have kept."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vcsoup_dist.consistency.markdown import fenced, percent_of, table, wrapped
from vcsoup_dist.consistency.page_rules import rules_section
from vcsoup_dist.records.filter_report import CORRELATION, FilterReport

MOST_PATTERNS = 27  # rows of the table of sign patterns: all that three values have
SCALES = {
    "zscore": "standard deviation of the rewards, chosen and rejected pooled",
    "gap_std": "standard deviation of the gaps",
    "robust": "median absolute deviation of the rewards, times 1.4826",
    "none": "1, so that gaps are in the rewards' own units",
}


def write_page(
    path: Path,
    report: FilterReport,
    most: Sequence[Mapping[str, Any]],
    least: Sequence[Mapping[str, Any]],
) -> None:
    """Write the page of a filtered set.

    `most`, `least`: the most and the least consistent pairs, as rows of the filtered file.
    """
    sections = [
        _head(report),
        _counts(report),
        _scales(report),
        _signs(report),
        *([_conflicts(report)] if len(report.values) > 1 else []),
        rules_section(report),
        _extremes("The most consistent pairs", most, report.values),
        _extremes("The least consistent pairs", least, report.values),
    ]
    path.write_bytes(("\n\n".join(sections) + "\n").encode())


def _head(report: FilterReport) -> str:
    kept, pairs = report.counts.kept, report.counts.pairs
    return "\n\n".join([
        f"# {report.value}: the pairs that {report.method} keeps",
        wrapped(
            f"Of {pairs:,} training pairs of {', '.join(report.datasets)}, {report.method} "
            f"keeps {kept:,} ({percent_of(kept, pairs)}): {_rule(report)}."
        ),
        wrapped(
            "A pair's gap vector g holds for each value the reward of the chosen answer less that "
            "of the rejected one, in units of the reward's scale s. Its consistency is "
            "`c = cos(g, 1)`: 1 where all values prefer the chosen answer equally strongly, -1 "
            "where all prefer the rejected one equally strongly."
        ),
    ])  # fmt: skip


def _rule(report: FilterReport) -> str:
    rule = report.rule
    share = f"{100 * (rule.ratio or 0):.4g} %"
    return {
        "all": "all that are usable",
        "as_many_as": f"as many as {report.size_of} keeps, at random",
        "all_positive": "those whose gaps are all positive",
        "threshold": f"those with `c >= {rule.threshold or 0:g}`",
        "ratio": f"the {share} with the largest c",
        "random": f"{share} at random",
    }[rule.kind]


def _counts(report: FilterReport) -> str:
    counts = report.counts
    rows = [("training pairs", counts.pairs), ("kept", counts.kept)]
    rows += [(f"left out: {reason}", count) for reason, count in counts.dropped.items() if count]
    shown = [[name, f"{count:,}", percent_of(count, counts.pairs)] for name, count in rows]
    parts = ["## Pairs", table(["", "pairs", "share"], shown)]
    if counts.unscored:
        parts.append(wrapped(
            f"{counts.unscored:,} pairs have no reward of some value; the scores of that value "
            "say why, pair by pair."
        ))  # fmt: skip
    if counts.swapped:
        parts.append(wrapped(
            f"{counts.swapped:,} pairs are swapped, because {report.value}'s own reward "
            f"prefers the answer that the data calls rejected; {counts.swapped_kept:,} of them "
            "are kept."
        ))  # fmt: skip
    parts += [
        wrapped(
            f"The two answers of {count:,} pairs of {dataset} are the same tokens to the reward of "
            f"{value}, which has cut or lost what tells them apart: its gap is 0."
        )
        for dataset, equal in report.equal_pairs.items()
        for value, count in equal.items()
        if count
    ]
    parts.append(f"{report.heldout.kept:,} held-out pairs are not filtered.")
    return "\n\n".join(parts)


def _scales(report: FilterReport) -> str:
    values = report.values
    over = "all datasets together" if report.scope == "all" else "each dataset by itself"
    rows = [
        [dataset, *(f"{scale[value]:.6g}" for value in values)]
        for dataset, scale in report.scale.items()
    ]
    normalisation = report.normalisation
    return f"""## Scales

{wrapped(f"s is `{normalisation}`: {SCALES[normalisation]}; over {over}.")}

{table(["data of", *values], rows)}"""


def _signs(report: FilterReport) -> str:
    before, after = report.counts.sign_patterns, report.counts.sign_patterns_kept
    order = sorted(before, key=lambda pattern: (-before[pattern], pattern))
    rows = [(f"`{each}`", before[each], after.get(each, 0)) for each in order[:MOST_PATTERNS]]
    rest = order[MOST_PATTERNS:]
    if rest:
        counts = [sum(counted.get(each, 0) for each in rest) for counted in (before, after)]
        rows.append((f"{len(rest)} others", counts[0], counts[1]))
    total = sum(before.values())
    shown = [
        [name, f"{n:,}", percent_of(n, total), f"{k:,}", percent_of(k, n)] for name, n, k in rows
    ]
    legend = wrapped(
        "Of the usable pairs: `+` where a value prefers the chosen answer, `-` where it prefers "
        "the rejected one, `0` where it prefers neither; in the order "
        f"{', '.join(report.values)}."
    )
    return f"""## Signs of the gaps

{legend}

{table(["signs", "pairs", "share", "kept", "of these"], shown)}"""


def _conflicts(report: FilterReport) -> str:
    values, conflicts = report.values, report.conflicts
    opposed = [[f"{100 * share:.1f} %" for share in row] for row in conflicts]
    for i in range(len(values)):
        opposed[i][i] = ""
    related = [["-" if r is None else f"{r:.2f}" for r in row] for row in report.correlation]
    i, j = max(
        itertools.combinations(range(len(values)), 2), key=lambda pair: conflicts[pair[0]][pair[1]]
    )
    worst = (
        f"The strongest conflict is between {values[i]} and {values[j]}: they prefer different "
        f"answers in {opposed[i][j]} of the usable pairs (correlation of their gaps: "
        f"{related[i][j]})."
        if conflicts[i][j]
        else "No two values prefer different answers in any pair."
    )

    def matrix(cells: Sequence[Sequence[str]]) -> str:
        rows = [[value, *row] for value, row in zip(values, cells, strict=True)]
        return table(["", *values], rows)

    return f"""## Which values conflict

{wrapped(worst)}

Share of the usable pairs in which two values prefer different answers:

{matrix(opposed)}

Correlation of the gaps of two values (-: one of them does not vary):

{matrix(related)}

![Correlation of the gaps]({CORRELATION})"""


def _extremes(title: str, rows: Sequence[Mapping[str, Any]], values: Sequence[str]) -> str:
    parts = [f"## {title}"]
    for place, row in enumerate(rows, start=1):
        gaps = ", ".join(f"{value} {row[f'gap_{value}']:+.3g}" for value in values)
        swapped = ", swapped" if row["swapped"] else ""
        parts.append(
            f"### {place}. c = {row['consistency']:.4f}\n\n"
            f"Gaps: {gaps}; norm {row['norm']:.3g}; data of {row['dataset']}{swapped}; "
            f"id `{row['id']}`"
        )
        for part in ("prompt", "chosen", "rejected"):
            for message in row[part]:
                speaker = f" ({message['role']})" if part == "prompt" else ""
                parts.append(f"**{part.capitalize()}{speaker}**\n\n{fenced(message['content'])}")
    if not rows:
        parts.append("There are none.")
    return "\n\n".join(parts)
