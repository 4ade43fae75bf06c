"""report.md of a filtered set: what is in it, and what another policy would have kept."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vcsoup_dist.consistency.comparison import lossless_threshold, safe_threshold
from vcsoup_dist.consistency.markdown import fenced, table, wrapped

HISTOGRAM, GAPS, CORRELATION = "histogram.png", "gaps.png", "correlation.png"
"""The plots, which lie beside the page."""

MOST_PATTERNS = 27  # rows of the table of sign patterns: all that three values have
SCALES = {
    "zscore": "standard deviation of the rewards, chosen and rejected pooled",
    "gap_std": "standard deviation of the gaps",
    "robust": "median absolute deviation of the rewards, times 1.4826",
    "none": "1, so that gaps are in the rewards' own units",
}


def write_page(
    path: Path,
    report: Mapping[str, Any],
    most: Sequence[Mapping[str, Any]],
    least: Sequence[Mapping[str, Any]],
) -> None:
    """Write the page of a filtered set.

    `report`: the content of its report.json; `most`, `least`: the most and the least consistent
    pairs, as rows of the filtered file.
    """
    sections = [
        _head(report),
        _counts(report),
        _scales(report),
        _signs(report),
        *([_conflicts(report)] if len(report["values"]) > 1 else []),
        _policies(report),
        _extremes("The most consistent pairs", most, report["values"]),
        _extremes("The least consistent pairs", least, report["values"]),
    ]
    path.write_bytes(("\n\n".join(sections) + "\n").encode())


def _head(report: Mapping[str, Any]) -> str:
    kept, pairs = report["kept"], report["pairs"]
    return "\n\n".join([
        f"# {report['value']}: the pairs that {report['method']} keeps",
        wrapped(
            f"Of {pairs:,} training pairs of {', '.join(report['datasets'])}, {report['method']} "
            f"keeps {kept:,} ({_percent(kept, pairs)}): {_rule(report)}."
        ),
        wrapped(
            "A pair's gap vector g holds for each value the reward of the chosen answer less that "
            "of the rejected one, in units of the reward's scale s. Its consistency is "
            "`c = cos(g, 1)`: 1 where all values prefer the chosen answer equally strongly, -1 "
            "where all prefer the rejected one equally strongly."
        ),
    ])  # fmt: skip


def _rule(report: Mapping[str, Any]) -> str:
    method, settings = report["filter"], report["settings"]
    if method == "rewarded_soup":
        return "all that are usable"
    if method == "random":
        return "as many as vc_soup keeps, at random"
    policy = "all_positive" if method == "all_positive" else settings["rule"]
    if policy == "all_positive":
        return "those whose gaps are all positive"
    if policy == "threshold":
        return f"those with `c >= {settings['threshold']:g}`"
    share = f"{100 * settings['ratio']:.4g} %"
    return f"the {share} with the largest c" if policy == "ratio" else f"{share} at random"


def _counts(report: Mapping[str, Any]) -> str:
    pairs = report["pairs"]
    rows = [("training pairs", pairs), ("kept", report["kept"])]
    rows += [(f"left out: {reason}", count) for reason, count in report["dropped"].items() if count]
    parts = [
        "## Pairs",
        table(["", "pairs", "share"], [[n, f"{c:,}", _percent(c, pairs)] for n, c in rows]),
    ]
    if report["unscored"]:
        parts.append(wrapped(
            f"{report['unscored']:,} pairs have no reward of some value; the scores of that value "
            "say why, pair by pair."
        ))  # fmt: skip
    if report["turned"]:
        parts.append(wrapped(
            f"{report['turned']:,} pairs are turned round, because {report['value']}'s own reward "
            f"prefers the answer that the data calls rejected; {report['turned_kept']:,} of them "
            "are kept."
        ))  # fmt: skip
    parts += [
        wrapped(
            f"The two answers of {count:,} pairs of {dataset} are the same tokens to the reward of "
            f"{value}, which has cut or lost what tells them apart: its gap is 0."
        )
        for dataset, counts in report["equal_pairs"].items()
        for value, count in counts.items()
        if count
    ]
    parts.append(f"{report['heldout']['kept']:,} held-out pairs are not filtered.")
    return "\n\n".join(parts)


def _scales(report: Mapping[str, Any]) -> str:
    values = report["values"]
    settings = report["settings"]
    over = "all datasets together" if settings["scope"] == "all" else "each dataset by itself"
    rows = [
        [dataset, *(f"{scale[value]:.6g}" for value in values)]
        for dataset, scale in report["scale"].items()
    ]
    normalisation = settings["normalisation"]
    return f"""## Scales

{wrapped(f"s is `{normalisation}`: {SCALES[normalisation]}; over {over}.")}

{table(["data of", *values], rows)}"""


def _signs(report: Mapping[str, Any]) -> str:
    before, after = report["sign_patterns"], report["sign_patterns_kept"]
    order = sorted(before, key=lambda pattern: (-before[pattern], pattern))
    rows = [(f"`{each}`", before[each], after.get(each, 0)) for each in order[:MOST_PATTERNS]]
    rest = order[MOST_PATTERNS:]
    if rest:
        counts = [sum(counted.get(each, 0) for each in rest) for counted in (before, after)]
        rows.append((f"{len(rest)} others", counts[0], counts[1]))
    total = sum(before.values())
    shown = [[name, f"{n:,}", _percent(n, total), f"{k:,}", _percent(k, n)] for name, n, k in rows]
    legend = wrapped(
        "Of the usable pairs: `+` where a value prefers the chosen answer, `-` where it prefers "
        "the rejected one, `0` where it prefers neither; in the order "
        f"{', '.join(report['values'])}."
    )
    return f"""## Signs of the gaps

{legend}

{table(["signs", "pairs", "share", "kept", "of these"], shown)}"""


def _conflicts(report: Mapping[str, Any]) -> str:
    values, conflicts = report["values"], report["conflicts"]
    correlation = report["correlation"]
    opposed = [[f"{100 * share:.1f} %" for share in row] for row in conflicts]
    for i in range(len(values)):
        opposed[i][i] = ""
    related = [["-" if r is None else f"{r:.2f}" for r in row] for row in correlation]
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

    return f"""## Who conflicts with whom

{wrapped(worst)}

Share of the usable pairs in which two values prefer different answers:

{matrix(opposed)}

Correlation of the gaps of two values (-: one of them does not vary):

{matrix(related)}

![Correlation of the gaps]({CORRELATION})"""


def _policies(report: Mapping[str, Any]) -> str:
    comparison, count = report["comparison"], len(report["values"])
    policies = comparison["policies"]
    letters = _letters(len(policies))
    rows = [
        [letter, each["name"] + _mark(each, report["filter"]), f"{each['count']:,}",
         _share(each["share"]), _share(each["all_positive"])]
        for letter, each in zip(letters, policies, strict=True)
    ]  # fmt: skip
    overlap = [
        [letter, *("-" if share is None else f"{100 * share:.0f} %" for share in row)]
        for letter, row in zip(letters, comparison["overlap"], strict=True)
    ]
    about_shares = wrapped(
        f"Shares are of the {comparison['usable']:,} usable pairs. But for `no filter`, policies "
        f"choose among the {comparison['eligible']:,} of them whose gap vector is neither zero nor "
        "shorter than `min_norm`. The last column says in how many of the kept pairs all gaps are "
        "positive."
    )
    return f"""## What each policy would keep

{chr(10).join(wrapped(f"- {meaning}") for meaning in _meanings(count))}

{about_shares}

{table(["", "policy", "pairs", "share", "all gaps > 0"], rows, texts=2)}

How much of what the row's policy keeps the column's policy keeps too:

{table(["", *letters], overlap)}

![Histogram of the consistency]({HISTOGRAM})

![Gaps of each two values]({GAPS})"""


def _mark(policy: Mapping[str, Any], method: str) -> str:
    """What is said of a policy beside its name."""
    others = {"all_positive": "all_positive", "random": "random", "rewarded_soup": "none"}
    own = policy["recipe"] if method == "vc_soup" else policy["policy"] == others[method]
    if own:
        return " (this set)"
    return " (vc_soup)" if policy["recipe"] else ""


def _meanings(count: int) -> list[str]:
    """What the policies ask of pairs with N values."""
    low, high = lossless_threshold(count), safe_threshold(count)
    thresholds = [
        "`c >= 0`: the gaps sum to 0 or more; single values may prefer the rejected answer.",
        f"`c >= {low:.4g}`, 1/sqrt(N) for N = {count} values: the highest threshold that surely "
        "loses no pair whose gaps are all positive.",
        f"`c >= {high:.4g}`, sqrt((N-1)/N): the lowest threshold that surely keeps no negative "
        "gap; it loses pairs whose gaps are all positive but of unlike size.",
    ]
    if count == 1:
        thresholds = ["With one value c is 1 or -1; `c >= 0` keeps the pairs with a positive gap."]
    if count == 2:
        thresholds[1:] = [
            f"`c >= {high:.4g}`, sqrt((N-1)/N) and 1/sqrt(N) for N = 2 values: keeps no negative "
            "gap, and loses no pair whose gaps are both positive. A higher threshold asks for gaps "
            "of like size as well.",
        ]
    return [
        *thresholds,
        "`best x %`: as many pairs as you say, however consistent they are.",
        "`all gaps > 0`: the signs alone decide; one gap may be large and the others tiny.",
        "`random`: the control, which keeps as many pairs as vc_soup without looking at them.",
    ]


def _extremes(title: str, rows: Sequence[Mapping[str, Any]], values: Sequence[str]) -> str:
    parts = [f"## {title}"]
    for place, row in enumerate(rows, start=1):
        gaps = ", ".join(f"{value} {row[f'gap_{value}']:+.3g}" for value in values)
        turned = ", turned round" if row["turned"] else ""
        parts.append(
            f"### {place}. c = {row['consistency']:.4f}\n\n"
            f"Gaps: {gaps}; norm {row['norm']:.3g}; data of {row['dataset']}{turned}; "
            f"id `{row['id']}`"
        )
        for part in ("prompt", "chosen", "rejected"):
            for message in row[part]:
                speaker = f" ({message['role']})" if part == "prompt" else ""
                parts.append(f"**{part.capitalize()}{speaker}**\n\n{fenced(message['content'])}")
    if not rows:
        parts.append("There are none.")
    return "\n\n".join(parts)


def _letters(count: int) -> list[str]:
    """A, B, C, ...; as many as there are policies, which are fewer than letters."""
    assert count <= len(ascii_uppercase)
    return list(ascii_uppercase[:count])


def _percent(part: int, whole: int) -> str:
    return _share(part / whole if whole else None)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
