"""The report's section about the filters: signs, conflicts, policies, and the plots."""

from __future__ import annotations

from collections.abc import Sequence

from vcsoup_dist.report.html import (
    Html,
    number,
    paragraph,
    picture,
    plain_table,
    section,
    tag,
    text,
)
from vcsoup_dist.report.page_data import Agreement, Patterns, Plot, Policy


def filter_section(
    patterns: Sequence[Patterns],
    agreements: Sequence[Agreement],
    plots: Sequence[Plot],
    values: Sequence[str],
) -> Html:
    """Per value what each filter kept, by the signs of the gaps, who conflicts with whom, and what
    other policies would keep; the plots of the consistency."""
    order = ", ".join(values)
    parts = [paragraph(text(
        "A pair's gap is positive (+) where a value's reward prefers the chosen answer, and "
        f"negative (−) where it prefers the rejected one. Signs stand in the order {order}. The "
        "consistency c of a pair is the cosine between its gaps and the all-ones vector. All "
        "counts are of the usable pairs, those that no method leaves out."
    ))]  # fmt: skip
    agreement_of = {each.value: each for each in agreements}
    for each in patterns:
        parts.append(tag("h3", text(f"Pairs of {each.value}")))
        parts.append(_signs(each))
        agreement = agreement_of[each.value]
        if len(values) > 1:
            parts += _conflicts(agreement, values)
        parts += _policies(agreement)
    if plots:
        pictures = [picture(each.png, each.caption, text(each.caption)) for each in plots]
        parts.append(tag("div", *pictures, css="plots"))
    return section("consistency", "Consistency", *parts)


def _signs(patterns: Patterns) -> Html:
    signs = sorted(patterns.all_pairs, key=lambda sign: (-patterns.all_pairs[sign], sign))
    rows = [
        [tag("code", text(sign.replace("-", "−"))), number(patterns.all_pairs[sign]),
         *(number(kept.get(sign, 0)) for kept in patterns.kept.values())]
        for sign in signs
    ]  # fmt: skip
    total = sum(patterns.all_pairs.values())
    kept_totals = [_total(sum(kept.values()), total) for kept in patterns.kept.values()]
    rows.append([tag("b", text("all")), tag("b", number(total)), *kept_totals])
    names = [f"kept by {method}" for method in patterns.kept]
    return plain_table(["Signs", "Pairs", *names], rows)


def _conflicts(agreement: Agreement, values: Sequence[str]) -> list[Html]:
    """One matrix: conflicts above its diagonal, correlations below."""

    def inside(i: int, j: int) -> Html:
        if i == j:
            return Html("")
        if i < j:
            return _percent(agreement.conflicts[i][j])
        return number(agreement.correlation[i][j], 2)

    rows = [
        [text(value), *(inside(i, j) for j in range(len(values)))] for i, value in enumerate(values)
    ]
    return [
        paragraph(text(
            "Above the diagonal: usable pairs in which two values prefer different answers. "
            "Below: the correlation of their gaps."
        )),
        plain_table(["", *values], rows),
    ]  # fmt: skip


def _policies(agreement: Agreement) -> list[Html]:
    rows = [
        [_name(each), number(each.pairs), _percent(each.share), _percent(each.all_positive)]
        for each in agreement.policies
    ]
    titles = ["Policy", "Pairs", "Of the usable", "All gaps positive"]
    return [paragraph(text("What each policy of the filter would keep:")),
            plain_table(titles, rows)]  # fmt: skip


def _name(policy: Policy) -> Html:
    name = policy.name.replace(">=", "≥")
    return tag("b", text(f"{name} (the recipe)")) if policy.recipe else text(name)


def _percent(share: float | None) -> Html:
    return text("–" if share is None else f"{100 * share:.1f} %")


def _total(count: int, total: int) -> Html:
    share = f" ({100 * count / total:.0f} %)" if total else ""
    return tag("b", number(count), text(share))
