"""The report's sections about rewards: the result, the table of soups, hypervolumes, edges."""

from __future__ import annotations

from vcsoup_dist.records.summary import Cell, MethodSummary, Row, Summary
from vcsoup_dist.report.html import (
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


def result(summary: Summary) -> Html:
    """The result in two sentences: hypervolume per method, and the balanced soup."""
    return paragraph(_volume_sentence(summary), Html(" "), _balance_sentence(summary), css="lede")


def front_section(summary: Summary, png: bytes) -> Html:
    """The front plot."""
    several = len(summary.values) > 2
    caption = (
        f"Mean rewards over {summary.prompts} prompts; whiskers are {_percent(summary)} intervals. "
        + ("In each panel the line and the strong marks are the soups not dominated in its two "
           "values. " if several else "The line joins each method's non-dominated soups. ")
        + "Hollow marks are dominated within their method. "
        + ("" if several else f"Labels are weights in the order {'/'.join(summary.axes)}.")
    )  # fmt: skip
    return section("front", "Front", picture(png, "Mean rewards of every soup", text(caption)))


def soup_section(summary: Summary) -> Html:
    """Every soup with every value's mean and interval."""
    places = {method.method: i for i, method in enumerate(summary.methods)}
    seeds = max(len(row.seeds) for row in summary.rows)
    parts = 3 if seeds > 1 else 2  # of a value: mean, interval, spread over the seeds
    head = [cell(text(f"λ {axis}"), "number", head=True) for axis in summary.axes]
    head.append(cell(Html(""), head=True))
    head += [cell(text(value), "value", head=True, span=parts) for value in summary.values]
    head.append(cell(text("unfinished"), "number", head=True))
    columns = len(summary.axes) + parts * len(summary.values) + 2
    bodies = []
    for method in dict.fromkeys(row.method for row in summary.rows):
        name = method_name(method, places.get(method or ""))
        lines = [tag("tr", cell(name, "group", head=True, span=columns))]
        lines += [
            _soup_row(summary, index, seeds > 1)
            for index, row in enumerate(summary.rows)
            if row.method == method
        ]
        bodies.append(lines)
    explained = (
        f"Mean reward over {summary.prompts} prompts with its {_percent(summary)} bootstrap "
        f"interval over the prompts ({summary.resamples:,} resamples)"
        + (f"; ± is the standard deviation over up to {seeds} seeds" if seeds > 1 else "")
        + ". “Unfinished” answers did not end within the limit and are judged as they are. The bar "
        "shows where a mean lies between the worst and the best of this run; a value's best mean "
        "is bold. “Front” is dominated by nothing here, “balanced” is best at its worst value; "
        "“own” says the same among its method's soups alone."
    )
    return section("soups", "Soups", paragraph(text(explained)), table(head, bodies, "soups"))


def volume_section(summary: Summary, png: bytes) -> Html:
    """Hypervolumes, the scale they are measured on, and the mean inner product."""
    seeds = max((len(method.hypervolume_by_seed) for method in summary.methods), default=0)
    caption = "Bars: mean over the seeds. Dots: seeds." if seeds > 1 else "One seed per method."
    rows = [
        [
            method_name(method.method, place),
            _volume(method),
            tag("small", join((number(v, 3) for v in method.hypervolume_by_seed.values()), ", ")),
            number(method.hypervolume_original),
            text(f"{len(method.front)} of {len(method.rows)}"),
            number(method.mean_inner_product, 3),
        ]
        for place, method in enumerate(summary.methods)
    ]
    titles = ["Method", "Hypervolume", "By seed", "In rewards' units", "On own front",
              "Mean inner product"]  # fmt: skip
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
        "reference point lies a tenth of the range below the worst. Both belong to this run, so "
        "hypervolumes of different runs do not compare. The mean inner product of the weights λ "
        "and the scaled values is high where soups are good at what their weights ask for."
    )
    return section(
        "hypervolume", "Hypervolume", paragraph(text(explained)),
        picture(png, "Hypervolume of every method", text(caption)),
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
            drop, at = edge.barrier[value], edge.barrier_at[value]
            share = 100 * drop / ((summary.scale.high[value] - summary.scale.low[value]) or 1)
            percent = f"({share:.0f} %)" if share >= 1 else "(< 1 %)"
            below = [number(drop, _decimals(summary, value)), text(percent)]
            where = text(f"at {at or 0:.2g}")
            drops.append(Html("–") if at is None else join([*below, where], " "))
        name = method_name(edge.method, places[edge.method])
        rows.append([name, text(f"{edge.start} → {edge.end}"), *drops])
    explained = (
        "Where policies are linearly connected, a soup between two of them earns at least what the "
        "straight line between their rewards promises. The barrier is the largest drop below that "
        "line: in the reward's units, as a share of the value's range, and at which weight of the "
        "second policy. A dash means that no soup lies below the line."
    )
    titles = ["Method", "Line", *(f"Barrier, {value}" for value in summary.values)]
    return section(
        "connectivity", "Between two policies", paragraph(text(explained)),
        picture(png, "Rewards between two policies", text("Solid: soups. Dashed: straight line.")),
        plain_table(titles, rows, 2),
    )  # fmt: skip


def _volume_sentence(summary: Summary) -> Html:
    ranked = sorted(summary.methods, key=lambda method: -method.hypervolume)
    if not ranked:
        return text("No soup was evaluated, only θ₀.")
    first, rest = ranked[0], ranked[1:]
    name = tag("strong", text(first.method))
    seeds = len(first.hypervolume_by_seed)
    spread = " (one seed, so without a spread)"
    if seeds > 1:
        spread = f" (±\N{NO-BREAK SPACE}over {seeds} seeds)"
    if not rest:
        count = f"{spread}; {len(first.front)} of its {len(first.rows)} soups are on its front."
        return join([name, Html(" reaches a hypervolume of "), _volume(first), text(count)])
    others = [join([text(each.method), _volume(each)], " ") for each in rest]
    listed = join([join(others[:-1], ", "), others[-1]], " and ") if len(others) > 1 else others[0]
    return join([name, Html(" has the largest hypervolume, "), _volume(first), Html(", before "),
                 listed, text(spread), Html(".")])  # fmt: skip


def _balance_sentence(summary: Summary) -> Html:
    row = summary.rows[summary.balanced]
    start = next((each for each in summary.rows if each.method is None), None)
    means = []
    for value in summary.values:
        decimals = _decimals(summary, value)
        parts = [text(value), number(row.cells[value].mean, decimals)]
        if start is not None and start is not row:
            parts += [Html("(θ₀"), Html(number(start.cells[value].mean, decimals) + ")")]
        means.append(join(parts, " "))
    found = join(means, ", ")
    if row.method is None:
        return join([Html("Nothing is more balanced than θ₀ itself: "), found, Html(".")])
    name = tag("strong", text(row.method), Html(" at "), soup_name(row.weights))
    worst = min(each.scaled for each in row.cells.values())
    ending = f"; at its worst value it is {100 * worst:.0f} % of the way from worst to best."
    return join([Html("The balanced soup is "), name, Html(": "), found, text(ending)])


def _soup_row(summary: Summary, index: int, spreads: bool) -> Html:
    row = summary.rows[index]
    weights = row.weights or {}
    cells = [cell(number(weights.get(axis), 2), "number weight") for axis in summary.axes]
    cells.append(cell(_badges(summary, index, row), "badges"))
    for value, one in row.cells.items():
        decimals = _decimals(summary, value)
        mean = number(one.mean, decimals)
        best = one.mean == max(each.cells[value].mean for each in summary.rows)
        cells.append(cell(join([tag("b", mean) if best else mean, _bar(one)]), "number mean"))
        ends = [number(one.low, decimals), number(one.high, decimals)]
        cells.append(cell(tag("small", join(ends, " … ")), "interval"))
        if spreads:
            spread = one.seed_spread
            shown = Html("") if spread is None else Html(f"± {number(spread, decimals)}")
            cells.append(cell(tag("small", shown), "spread"))
    cut = Html("") if row.unfinished is None else text(f"{100 * row.unfinished:.0f} %")
    cells.append(cell(cut, "number"))
    return tag("tr", *cells, css="chosen" if index == summary.balanced else "")


def _bar(one: Cell) -> Html:
    width = 100 * min(1.0, max(0.0, one.scaled))
    return Html(f'<span class="bar"><span style="width:{width:.1f}%"></span></span>')


def _badges(summary: Summary, index: int, row: Row) -> Html:
    shown = []
    if row.on_front:
        shown.append(tag("span", text("front"), css="badge front"))
    elif row.on_method_front:
        shown.append(tag("span", text("own front"), css="badge"))
    if index == summary.balanced:
        shown.append(tag("span", text("balanced"), css="badge balanced"))
    elif any(index == method.balanced for method in summary.methods):
        shown.append(tag("span", text("own balanced"), css="badge"))
    return join(shown, " ")


def _volume(method: MethodSummary) -> Html:
    spread = method.hypervolume_spread
    mean = number(method.hypervolume, 3)
    return mean if spread is None else join([mean, number(spread, 3)], " ± ")


def _decimals(summary: Summary, value: str) -> int:
    return decimals_for(summary.scale.high[value] - summary.scale.low[value])


def _percent(summary: Summary) -> str:
    return f"{100 * summary.confidence:g} %"
