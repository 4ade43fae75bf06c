"""The section of report.md about what each rule would keep, to choose a rule by."""

from __future__ import annotations

from string import ascii_uppercase

from vcsoup_dist.consistency.comparison import lossless_threshold, safe_threshold
from vcsoup_dist.consistency.markdown import percent, table, wrapped
from vcsoup_dist.records.filter_report import GAPS, HISTOGRAM, FilterReport, RuleCount


def rules_section(report: FilterReport) -> str:
    """What the rules mean, what each keeps, how much they overlap, and the plots."""
    comparison, count = report.comparison, len(report.values)
    letters = list(ascii_uppercase[: len(comparison.rules)])
    rows = [
        [letter, each.name + _mark(each, report), f"{each.count:,}",
         percent(each.share), percent(each.all_positive)]
        for letter, each in zip(letters, comparison.rules, strict=True)
    ]  # fmt: skip
    overlap = [
        [letter, *("-" if share is None else f"{100 * share:.0f} %" for share in row)]
        for letter, row in zip(letters, comparison.overlap, strict=True)
    ]
    about_shares = wrapped(
        f"Shares are of the {comparison.usable:,} usable pairs. But for `no filter`, rules "
        f"choose from the {comparison.eligible:,} of them whose gap vector is neither zero nor "
        "shorter than `min_norm`. The last column says in how many of the kept pairs all gaps are "
        "positive."
    )
    return f"""## What each rule would keep

{chr(10).join(wrapped(f"- {meaning}") for meaning in _meanings(count))}

{about_shares}

{table(["", "rule", "pairs", "share", "all gaps > 0"], rows, texts=2)}

How much of what the row's rule keeps the column's rule keeps too:

{table(["", *letters], overlap)}

![Histogram of the consistency]({HISTOGRAM})

![Gaps of each two values]({GAPS})"""


def _mark(row: RuleCount, report: FilterReport) -> str:
    """What stands after the name of the set's own rule, and of the rule whose size it copies."""
    kind = report.rule.kind
    if kind == "as_many_as":
        is_this = row.rule.kind in ("as_many_as", "random")
    else:
        is_this = row.is_own or row.rule.kind == kind == "all"
    if is_this:
        return " (this set)"
    return f" ({report.size_of})" if row.is_own else ""


def _meanings(count: int) -> list[str]:
    """What the rules ask of pairs with N values."""
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
        "`random`: the control, which keeps as many pairs as the filter without looking at them.",
    ]
