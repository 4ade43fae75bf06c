"""The report's sections about rewards: the result, the table of soups, hypervolumes, edges."""

from __future__ import annotations

from vcsoup_dist.evaluation.report_html import (
    Html,
    cell,
    decimals_for,
    join,
    method_name,
    number,
    paragraph,
    picture,
    plain_table,
    section,
    soup_name,
    table,
    tag,
    text,
)
from vcsoup_dist.evaluation.summary import Cell, MethodSummary, Row, Summary


def result(summary: Summary) -> Html:
    """The result in two sentences: hypervolume per method, and the balanced soup."""
    return paragraph(_volume_sentence(summary), Html(" "), _balance_sentence(summary), css="lede")


def front_section(summary: Summary, png: bytes) -> Html:
    """The front plot."""
    several = len(summary.values) > 2
    caption = (
        f"Mean rewards of {summary.prompts} prompts; whiskers are {_percent(summary)} intervals. "
        + ("In each panel the line and the strong marks are the soups not dominated in its two "
           "values. " if several else "The line joins each method's non-dominated soups. ")
        + "Hollow marks are dominated within their method. Labels are weights in the order "
        + "/".join(summary.axes) + "."
    )  # fmt: skip
    return section("front", "Front", picture(png, "Mean rewards of every soup", text(caption)))


def soup_section(summary: Summary) -> Html:
    """Every soup with every value's mean and interval."""
    places = {method.method: i for i, method in enumerate(summary.methods)}
    columns = len(summary.axes) + len(summary.values) + 1
    head = [cell(text(f"λ {axis}"), "number", head=True) for axis in summary.axes]
    head += [cell(text(value), "number", head=True) for value in summary.values]
    head.append(cell(Html(""), head=True))
    best = {v: max(row.cells[v].mean for row in summary.rows) for v in summary.values}
    bodies = []
    for method in dict.fromkeys(row.method for row in summary.rows):
        title = cell(method_name(method, places.get(method or "")), "group", head=True, span=columns)
        lines = [tag("tr", title)]
        for index, row in enumerate(summary.rows):
            if row.method == method:
                lines.append(_soup_row(summary, index, best))
        bodies.append(lines)
    seeds = max(len(row.seeds) for row in summary.rows)
    explained = (
        f"Mean reward of {summary.prompts} prompts with its {_percent(summary)} bootstrap interval "
        f"over the prompts ({summary.resamples:,} resamples)"
        + (f"; ± is the standard deviation over up to {seeds} seeds" if seeds > 1 else "")
        + ". The bar shows where a mean lies between the worst and the best of this run; the best "
        "mean of a value is bold. “Front” is not dominated by anything here, “own front” by nothing "
        "of its method. “Balanced” has the largest smallest scaled value, of all or of its method."
    )
    return section("soups", "Soups", paragraph(text(explained)), table(head, bodies, "soups"))


def volume_section(summary: Summary, png: bytes) -> Html:
    """Hypervolumes, the scale they are measured on, and the mean inner product."""
    rows = [
        [
            method_name(method.method, place),
            _volume(method),
            join((number(v, 3) for v in method.hypervolume_by_seed.values()), ", "),
            number(method.hypervolume_original),
            text(f"{len(method.front)} of {len(method.rows)}"),
            number(method.mean_inner_product, 3),
            soup_name(summary.rows[method.balanced].weights),
        ]
        for place, method in enumerate(summary.methods)
    ]
    titles = ["Method", "Hypervolume", "By seed", "In rewards' units", "On own front",
              "Mean inner product", "Balanced soup"]  # fmt: skip
    scale = summary.scale
    scales = [
        [text(value), *(number(side[value], _decimals(summary, value) + 1)
                        for side in (scale.low, scale.high, scale.reference)),
         number(scale.reference_scaled[value], 2)]
        for value in summary.values
    ]  # fmt: skip
    explained = (
        "The volume between a method's soups and the reference point, larger being better. Each "
        "value is scaled so that the worst mean evaluated in this run is 0 and the best 1; the "
        "reference point lies a tenth of the range below the worst. Both belong to this run: do not "
        "compare hypervolumes of different runs. The mean inner product of the weights λ and the "
        "scaled values is high where soups are good at what their weights ask for."
    )
    return section(
        "hypervolume", "Hypervolume", paragraph(text(explained)),
        picture(png, "Hypervolume of every method", text("Bars: mean over the seeds; dots: seeds.")),
        plain_table(titles, rows), tag("h3", text("Scale and reference point")),
        plain_table(["Value", "Worst (0)", "Best (1)", "Reference", "Reference, scaled"], scales),
    )  # fmt: skip


def edge_section(summary: Summary, png: bytes | None) -> Html:
    """Linear mode connectivity in rewards."""
    if png is None:
        return section(
            "connectivity", "Between two policies",
            paragraph(text("No line between two policies was evaluated with both of its ends.")),
        )  # fmt: skip
    places = {method.method: i for i, method in enumerate(summary.methods)}
    rows = []
    for edge in summary.edges:
        drops = []
        for value in summary.values:
            span = summary.scale.high[value] - summary.scale.low[value]
            drop, at = edge.barrier[value], edge.barrier_at[value]
            share = round(100 * drop / span) if span else 0
            drops.append(
                Html("–") if at is None
                else join([number(drop, _decimals(summary, value)), text(f"at {at:.2g}, {share} %")], " · ")
            )  # fmt: skip
        name = method_name(edge.method, places[edge.method])
        rows.append([name, text(f"{edge.start} → {edge.end}"), *drops])
    explained = (
        "Where policies are linearly connected, a soup between two of them earns at least what the "
        "straight line between their rewards promises. The barrier is the largest drop below that "
        "line: in the reward's units, at which weight of the second policy, and as a share of the "
        "value's range. A dash means that no soup lies below the line."
    )
    return section(
        "connectivity", "Between two policies", paragraph(text(explained)),
        picture(png, "Rewards between two policies", text("Solid: soups. Dashed: straight line.")),
        plain_table(["Method", "Line", *(f"Barrier, {value}" for value in summary.values)], rows, 2),
    )  # fmt: skip


def _volume_sentence(summary: Summary) -> Html:
    ranked = sorted(summary.methods, key=lambda method: -method.hypervolume)
    if not ranked:
        return text("No soup was evaluated, only θ₀.")
    first, rest = ranked[0], ranked[1:]
    name = tag("strong", text(first.method))
    seeds = len(first.hypervolume_by_seed)
    spread = f" (± over {seeds} seeds)" if seeds > 1 else " (one seed, so without a spread)"
    if not rest:
        return join([name, Html(" reaches a hypervolume of "), _volume(first), text(spread),
                     text(f"; {len(first.front)} of its {len(first.rows)} soups are on its front.")])
    others = [join([text(each.method), _volume(each)], " ") for each in rest]
    listed = join([join(others[:-1], ", "), others[-1]], " and ") if len(others) > 1 else others[0]
    return join([name, Html(" has the largest hypervolume, "), _volume(first), Html(", before "),
                 listed, text(spread), Html(".")])  # fmt: skip


def _balance_sentence(summary: Summary) -> Html:
    row = summary.rows[summary.balanced]
    start = next((each for each in summary.rows if each.method is None), None)
    worst = number(min(each.scaled for each in row.cells.values()), 2)
    means = []
    for value in summary.values:
        decimals = _decimals(summary, value)
        parts = [text(value), number(row.cells[value].mean, decimals)]
        if start is not None and start is not row:
            parts += [Html("(θ<sub>0</sub>"), Html(number(start.cells[value].mean, decimals) + ")")]
        means.append(join(parts, " "))
    found = join(means, ", ")
    if row.method is None:
        return join([Html("Nothing is more balanced than θ<sub>0</sub> itself: "), found, Html(".")])
    return join([
        Html("The balanced soup is "), tag("strong", text(row.method), Html(" at "),
                                           soup_name(row.weights)),
        Html(": "), found, text("; its worst value reaches "), worst,
        text(" of the way from this run's worst to its best."),
    ])  # fmt: skip


def _soup_row(summary: Summary, index: int, best: dict[str, float]) -> Html:
    row = summary.rows[index]
    weights = row.weights or {}
    cells = [cell(number(weights.get(axis), 2), "number weight") for axis in summary.axes]
    for value in summary.values:
        one = row.cells[value]
        inside = _mean_and_interval(one, _decimals(summary, value), bold=one.mean == best[value])
        cells.append(cell(inside, "number"))
    cells.append(cell(_badges(summary, index, row), "badges"))
    return tag("tr", *cells, css="chosen" if index == summary.balanced else "")


def _mean_and_interval(one: Cell, decimals: int, *, bold: bool) -> Html:
    mean = number(one.mean, decimals)
    interval = f"{number(one.low, decimals)} … {number(one.high, decimals)}"
    spread = "" if one.seed_spread is None else f"± {number(one.seed_spread, decimals)}"
    return Html(
        f"{tag('b', mean) if bold else mean} <small>{interval}</small>"
        + (f" <small>{spread}</small>" if spread else "")
        + f'<span class="bar"><span style="width:{100 * min(1, max(0, one.scaled)):.1f}%"></span></span>'
    )


def _badges(summary: Summary, index: int, row: Row) -> Html:
    shown = []
    if row.on_front:
        shown.append(tag("span", text("front"), css="badge front"))
    elif row.on_method_front:
        shown.append(tag("span", text("own front"), css="badge"))
    if index == summary.balanced:
        shown.append(tag("span", text("balanced"), css="badge balanced"))
    elif any(index == method.balanced for method in summary.methods):
        shown.append(tag("span", text("balanced of method"), css="badge"))
    return join(shown, " ")


def _volume(method: MethodSummary) -> Html:
    spread = method.hypervolume_spread
    mean = number(method.hypervolume, 3)
    return mean if spread is None else join([mean, number(spread, 3)], " ± ")


def _decimals(summary: Summary, value: str) -> int:
    return decimals_for(summary.scale.high[value] - summary.scale.low[value])


def _percent(summary: Summary) -> str:
    return f"{100 * summary.confidence:g} %"
