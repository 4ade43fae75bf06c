"""The report's page and plots: complete, well-formed, self-contained, and safe with any text."""

from __future__ import annotations

import base64
import io
import itertools
import re
import struct
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from vcsoup_dist.records.answer_figures import AnswerFigures, CandidateAnswers, LengthEffect
from vcsoup_dist.records.filter_report import FilterReport, PairCounts, RuleComparison, RuleCount
from vcsoup_dist.records.keep_rule import KeepRule
from vcsoup_dist.records.summary import Curvature, Drop, LossCurve, Summary
from vcsoup_dist.report.method_styles import method_styles
from vcsoup_dist.report.numbers import decimals_for, number
from vcsoup_dist.report.page import SECTIONS, render
from vcsoup_dist.report.page_data import (
    Answer,
    Filters,
    PairsRead,
    PairsScored,
    Plot,
    Prompts,
    ReportData,
    Sample,
    Trained,
)
from vcsoup_dist.report.pair_flow import PairFlow
from vcsoup_dist.report.plots import figures
from vcsoup_dist.report.plots.labels import Label, place_labels
from vcsoup_dist.report.stage_times import StageTime
from vcsoup_dist.report.statistics.cost import MethodCost
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.report.statistics.summarise import summarise

VOID = {"meta", "img"}
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)


class Page(HTMLParser):
    """Elements of a page with their attributes and text; raises where tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {[name for name, _, _ in self.open]}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute comes twice in {tag}"
        if tag in VOID:
            self.elements.append((tag, dict(attrs), ""))
        else:
            self.open.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        name, attributes, inside = self.open.pop()
        assert name == tag, f"</{tag}> closes <{name}>"
        self.elements.append((name, attributes, "".join(inside)))

    def handle_data(self, data):
        for _, _, inside in self.open:
            inside.append(data)

    def texts(self, name: str) -> list[str]:
        return [inside for tag, _, inside in self.elements if tag == name]

    def section(self, name: str) -> str:
        (found,) = [i for tag, a, i in self.elements if tag == "section" and a.get("id") == name]
        return found


def rewards(mean: float, prompts: int = 8) -> np.ndarray:
    return mean + np.linspace(-1, 1, prompts)


def evaluations(
    methods=("vc_soup", "random"), seeds=(0, 1), shift=0.5, values=("helpful", "harmless")
) -> list[Evaluated]:
    """theta_0 earns 0, policies 2 and -1, halves 1; each further method earns `shift` less."""
    found = [Evaluated("base", None, None, None, {value: rewards(0.0) for value in values})]
    corners = np.eye(len(values))
    lambdas = [*corners, *((a + b) / 2 for a, b in itertools.combinations(corners, 2))]
    for place, method in enumerate(methods):
        for seed in seeds:
            for weights in lambdas:
                lam = dict(zip(values, map(float, weights), strict=True))
                lost = shift * place + 0.1 * seed
                means = {v: {1.0: 2.0, 0.5: 1.0, 0.0: -1.0}[w] - lost for v, w in lam.items()}
                found.append(Evaluated(
                    f"{method}/{seed}/{weights}", method, seed, lam,
                    {value: rewards(mean) for value, mean in means.items()},
                ))  # fmt: skip
    return found


def summary_of(**changes: object) -> Summary:
    return summarise(evaluations(**changes), resamples=100, confidence=0.95)


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summary_of()


def filter_report(kept: dict[str, int], sign: str = "--", rule: str = "c >= 0.35") -> FilterReport:
    counts = PairCounts(11000, sum(kept.values()), {}, 0, 0, 0,
                        {"++": 6000, "+-": 4000, sign: 1000}, kept)  # fmt: skip
    own = KeepRule("threshold", threshold=0.35)
    rules = [RuleCount("no filter", KeepRule("all"), False, 11000, 1.0, 0.545),
             RuleCount(rule, own, True, 6000, 0.5454, None)]  # fmt: skip
    return FilterReport(
        method="vc_soup", rule=own, size_of=None, value="helpful", values=["helpful", "harmless"],
        datasets=["helpful"], normalisation="zscore", scope="dataset", counts=counts,
        heldout=counts, scale={}, equal_pairs={}, correlation=[[1.0, -0.25], [-0.25, None]],
        conflicts=[[0, 0.375], [0.375, 0]], comparison=RuleComparison(11000, 11000, rules, []),
        files=[],
    )  # fmt: skip


def figures_of(summary: Summary) -> AnswerFigures:
    rows = tuple(
        CandidateAnswers(
            row.method, row.weights, row.names, 20.5, 0.25, 0.0, 1.5, None,
            {value: cell.mean for value, cell in row.cells.items()},
            dict.fromkeys(summary.values, None),
        )
        for row in summary.rows
    )  # fmt: skip
    effects = {value: LengthEffect(None, None, None, None, 0.5) for value in summary.values}
    return AnswerFigures(rows, effects, is_kl=False)


def report_of(summary: Summary) -> ReportData:
    return ReportData(
        title="a run",
        facts={"Base model": "small-model"},
        notes=["Judged by the filter's own rewards."],
        summary=summary,
        figures=figures_of(summary),
        front_plot=DOT,
        hypervolume_plot=DOT,
        edge_plot=DOT,
        curve_plot=DOT,
        costs=[MethodCost("vc_soup", 2, 240, 1234567, 62.5, 0.5, 0.0, 3_000_000),
               MethodCost("random", 2, 238, None, None, None, None, 1_500_000)],
        pairs=[PairsRead("helpful", 12345, 11000, 1000, 300, 38, {"empty response": 5, "odd": 2},
                          {"equal ratings": 21}, 9, 2)],
        scores=[PairsScored("helpful", "harmless", 11000, 9, {"too odd": 8}, 17, -0.25, 1.5)],
        filters=[Filters("helpful", {
            "vc_soup": filter_report({"++": 5900, "+-": 100}),
            "random": filter_report({"++": 3300}),
        }, "vc_soup", [Plot("Consistency of helpful", DOT)])],
        flows=[PairFlow("vc_soup", ("helpful",), 12345, 7, 1338, 10991, 30, {"too long": 5}, 25,
                        240, 9.6, False)],
        stage_times=[StageTime("train", 3, 1, 72.25, None)],
        trained=[Trained("vc_soup", "helpful", 1, {"steps": 120, "loss": 0.61234, "stopped": None}),
                 Trained("random", "helpful", 0, {"steps": 119, "KL": 1234.5})],
        prompts=[Prompts("helpful", 64, 3, ["What is seen twice?"]),
                 Prompts("harmless", 60, 0, [])],
        samples=[Sample("What now?", [Answer("θ₀", "Nothing.", {"helpful": -0.5})])],
        commands=["vcsoup run recipe.yaml"],
        recipe="name: a-run\n",
    )  # fmt: skip


def test_the_page_is_well_formed_and_deterministic(summary):
    page = render(report_of(summary))
    assert page.startswith("<!DOCTYPE html>")
    assert page == render(report_of(summary))
    names = [a["id"] for tag, a, _ in Page(page).elements if tag == "section"]
    assert names == list(SECTIONS)


def test_nothing_is_loaded_from_outside_and_no_script_runs(summary):
    page = render(report_of(summary))
    parsed = Page(page)
    ids = {a["id"] for _, a, _ in parsed.elements if "id" in a}
    for tag, attributes, _ in parsed.elements:
        assert tag not in {"script", "link", "iframe", "object", "form", "base"}
        assert not [name for name in attributes if name.startswith("on")]
        if "src" in attributes:
            kind, data = attributes["src"].split(",")
            assert kind == "data:image/png;base64"
            assert base64.b64decode(data, validate=True) == DOT
        if "href" in attributes:
            assert attributes["href"][0] == "#" and attributes["href"][1:] in ids
    (style,) = parsed.texts("style")
    assert "url(" not in style and "@import" not in style
    policy = [a["content"] for _, a, _ in parsed.elements if "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def two(number: float) -> str:
    """Two decimals, a true minus sign, no negative zero."""
    return f"{round(number, 2) + 0.0:.2f}".replace("-", "−")


def lede_of(data: ReportData) -> str:
    (lede,) = [i for _, a, i in Page(render(data)).elements if a.get("class") == "lede"]
    return lede


def test_every_soup_is_a_row_with_its_numbers(summary):
    page = render(report_of(summary))
    parsed = Page(page)
    rows = [i for tag, _, i in parsed.elements if tag == "tr"]
    for row in summary.rows:
        weights = "".join(f"{w:.2f}" for w in row.weights.values()) if row.weights else "––"
        numbers = ""
        for cell in row.cells.values():
            numbers += f"{two(cell.mean)}{two(cell.low)} … {two(cell.high)}"
            numbers += "" if cell.seed_spread is None else f"± {two(cell.seed_spread)}"
        assert len([line for line in rows
                    if line.startswith(weights) and line.endswith(numbers)]) == 1  # fmt: skip
    badges = [i for tag, a, i in parsed.elements if "badge" in (a.get("class") or "").split()]
    assert badges.count("front") == len(summary.front)
    assert badges.count("own front") == sum(
        row.on_method_front and not row.on_front for row in summary.rows
    )
    assert badges.count("balanced") == 1
    chosen = [i for tag, a, i in parsed.elements if tag == "tr" and a.get("class") == "chosen"]
    assert len(chosen) == 1 and chosen[0].startswith("0.500.50") and "balanced" in chosen[0]


def test_the_result_names_no_winner_that_two_seeds_do_not_support():
    summary = summary_of(shift=0.02)
    lede = lede_of(report_of(summary))
    (pair,) = summary.comparisons.pairs
    assert pair.low < 0 < pair.high
    assert lede.startswith(
        "vc_soup and random cannot be told apart by hypervolume: vc_soup leads by "
        f"{pair.difference:.3f} [{number(pair.low, 3)}, {pair.high:.3f}]. The two are compared at "
    )
    assert "2 seeds are few, so it is a weak claim" in lede
    assert "balanced soup is vc_soup at 0.50 helpful + 0.50 harmless: helpful 0.95 (θ₀ 0.0" in lede
    assert "has the largest" not in lede


def test_the_result_names_the_method_that_is_ahead_with_its_difference():
    lede = lede_of(report_of(summary_of(seeds=tuple(range(8)), shift=2.0)))
    assert lede.startswith("vc_soup has the largest hypervolume, ahead of random by 0.")
    assert "few" not in lede


def test_the_result_says_so_where_nothing_beats_the_start():
    values = ("helpful", "harmless")
    base = Evaluated("base", None, None, None, {value: rewards(1.5) for value in values})
    soup = Evaluated("s", "vc_soup", 0, {"helpful": 1.0, "harmless": 0.0},
                     {"helpful": rewards(2.5), "harmless": rewards(-1.0)})  # fmt: skip
    lede = lede_of(report_of(summarise([base, soup], resamples=100, confidence=0.9)))
    assert "vc_soup reaches a hypervolume of" in lede
    assert "Nothing is more balanced than θ₀ itself: helpful 1.50, harmless 1.50." in lede
    alone = lede_of(report_of(summarise([base], resamples=100, confidence=0.9)))
    assert alone.startswith("No soup was evaluated, only θ₀.")


def test_counts_of_every_stage_are_on_the_page(summary):
    parsed = Page(render(report_of(summary)))
    rows = parsed.texts("tr")
    for expected in [
        "helpful12,34511,0001,000930038217",
        "helpfulempty response5",
        "helpfulequal ratings21",
        "helpfulharmless11,000917−0.251.5",
        "helpfulharmlesstoo odd8",
        "helpful37.5 %",
        "harmless−0.25",
        "no filter11,000100.0 %54.5 %",
        "c ≥ 0.35 (vc_soup)6,00054.5 %–",
        "++6,0005,9003,300",
        "−−1,00000",
        "all11,0006,000 (55 %)3,300 (30 %)",
        "● vc_souphelpful12,34571,33810,991305252409.60",
        "train3172.2–",
        "● vc_souphelpful11200.6123––",
        "■ randomhelpful0119––1,234",
        "helpful6431",
    ]:
        assert rows.count(expected) == 1, expected
    assert "What is seen twice?" in parsed.section("prompts")
    assert "vcsoup run recipe.yaml" in parsed.section("reproduce")
    assert "name: a-run" in parsed.section("reproduce")


def test_what_a_method_costs_stands_beside_its_hypervolume(summary):
    rows = Page(render(report_of(summary))).texts("tr")
    method = next(each for each in summary.methods if each.method == "vc_soup")
    assert method.hypervolume_low is not None and method.hypervolume_high is not None
    numbers = [method.corrected, method.hypervolume_low]
    shown = "".join(number(each, 3) for each in numbers)
    shown += f" … {number(method.hypervolume_high, 3)}"
    assert rows.count(f"● vc_soup22401,234,56762.50.50.003{shown}") == 1
    gone = replace(report_of(summary), costs=[MethodCost("gone", 1, 2, 3, 4.0, 5.0, 0.0, 6)])
    assert "gone1234.050.000–" in Page(render(gone)).texts("tr")


def test_reference_point_and_scale_are_on_the_page(summary):
    section = Page(render(report_of(summary))).section("hypervolume")
    low, high = summary.scale.low["helpful"], summary.scale.high["helpful"]
    assert (low, high) == (pytest.approx(-1.1), pytest.approx(2.0))
    assert "single-value policies of vc_soup" in section
    assert "helpful−1.1002.000−1.410−0.10" in section
    assert "Candidates that are no single-value policy do not move it" in section
    assert "holds for candidates of random (2 of 3)." in section  # harmless -1.55 in two


def test_where_no_policies_were_evaluated_the_page_says_what_spans_and_moves_the_scale():
    middle = [one for one in evaluations(("vc_soup", "random"), (0,)) if one.policy is None]
    low = Evaluated(
        "low", "random", 0, {"helpful": 0.9, "harmless": 0.1},
        {"helpful": rewards(3.0), "harmless": rewards(-9.0)},
    )  # fmt: skip
    found = summarise([*middle, low], resamples=100, confidence=0.95)
    section = Page(render(report_of(found))).section("hypervolume")
    assert (
        "all candidates of vc_soup, of every seed, since of no method the single-value" in section
    )
    assert "Another candidate of vc_soup moves it where" in section
    assert "holds for candidates of random (1 of 2)." in section
    wider = Evaluated("wide", "vc_soup", 0, low.weights, low.rewards)
    moved = summarise([*middle, low, wider], resamples=100, confidence=0.95)
    assert moved.scale.low["harmless"] < found.scale.low["harmless"]


def test_a_hypervolume_that_is_cut_at_0_is_0_everywhere_and_the_page_says_so(summary):
    cut = replace(summary.methods[0], hypervolume=0.2, hypervolume_bias=0.75,
                  hypervolume_low=0.0, hypervolume_high=0.3)  # fmt: skip
    page = Page(render(report_of(replace(summary, methods=(cut, *summary.methods[1:])))))
    said = "The bias of vc_soup is larger than what was measured."
    assert said in page.section("hypervolume")
    assert said not in Page(render(report_of(summary))).section("hypervolume")
    assert "2.50.50.0030.0000.000 … 0.300" in page.section("cost")
    assert "With 95 % the interval holds; two methods" in page.section("hypervolume")


def test_barriers_are_on_the_page_only_where_the_band_is_above_0(summary):
    section = Page(render(report_of(summary))).section("connectivity")
    assert "No line has a barrier" in section and "95 %" in section and "Few seeds" in section
    drops = {"helpful": Drop((0.36,), (0.1,), (0.62,), 0, True),
             "harmless": Drop((-0.5,), (-0.75,), (0.25,), 0, False)}  # fmt: skip
    curves = {"helpful": Curvature(2.88, 0.5, 0.8, 4.96), "harmless": Curvature(-4, 0.5, 0, 6)}
    dented = replace(summary.edges[0], drop=drops, curvature=curves, seeds=tuple(range(8)))
    page = Page(render(report_of(replace(summary, edges=(dented,)))))
    assert "1 of 2 lines has a barrier" in page.section("connectivity")
    assert "Few seeds" not in page.section("connectivity")
    line = "● vc_souphelpful → harmless"
    for expected in [
        f"{line}helpfulbarrier0.360.10 … 0.620.52.880.80 … 4.96",
        f"{line}harmless−0.50−0.75 … 0.250.5−4.000.00 … 6.00",
    ]:
        assert page.texts("tr").count(expected) == 1, page.texts("tr")
    assert "DPO loss" not in page.section("connectivity")
    curve = LossCurve((0.5, 0.9, 0.25), 64, Drop((0.525,), (0.25,), (0.75,), 0, True))
    measured = replace(dented, losses={"harmless": curve})
    page = Page(render(report_of(replace(summary, edges=(measured,)))))
    assert "DPO loss on held-out pairs" in page.section("connectivity")
    expected = f"{line}harmlessbarrier640.500, 0.2500.52500.2500 … 0.75000.5"
    assert page.texts("tr").count(expected) == 1, page.texts("tr")
    without = render(replace(report_of(summary), edge_plot=None))
    assert "No line between two policies was evaluated" in Page(without).section("connectivity")


def test_hostile_text_is_shown_and_never_run():
    planted = []

    def hostile(where: str) -> str:
        script = f"<script>x('{where}')</script><img src=http://x/{where} onerror=\"x\">&amp;"
        planted.append(f"</td></pre>{script}")
        return planted[-1]

    values = (hostile("value"), "harmless")
    summary = summary_of(values=values, methods=(hostile("method"), "random"))
    data = report_of(summary)
    data = replace(
        data,
        title=hostile("title"),
        facts={hostile("term"): hostile("fact")},
        notes=[hostile("note")],
        pairs=[replace(data.pairs[0], dataset=hostile("data"), rejected={hostile("reason"): 1},
                       left_out={hostile("left"): 1})],
        scores=[replace(data.scores[0], value=hostile("scored"), reasons={hostile("why"): 1})],
        filters=[Filters(hostile("filtered"), {(method := hostile("filter")): filter_report(
            {}, hostile("sign"), hostile("rule"),
        )}, method, [Plot(hostile("caption"), DOT)])],
        trained=[Trained(hostile("who"), "v", 0, {hostile("metric"): hostile("number")})],
        prompts=[Prompts(hostile("prompts"), 1, 0, [hostile("seen")])],
        samples=[Sample(hostile("prompt"), [Answer(hostile("soup"), hostile("answer"),
                                                   {hostile("reward"): 1.0})])],
        commands=[hostile("command")],
        recipe=hostile("recipe"),
    )  # fmt: skip
    page = render(data)
    parsed = Page(page)
    shown = " ".join(parsed.texts("html"))
    for one in planted:
        assert one in shown
    allowed = {"class", "id", "style", "colspan", "alt", "src", "href", "content", "name", "lang",
               "charset", "http-equiv"}  # fmt: skip
    for tag, attributes, _ in parsed.elements:
        assert tag != "script" and set(attributes) <= allowed
        assert "http:" not in (attributes.get("src") or "")


@given(st.text(st.characters(exclude_categories=())), st.text())
@settings(max_examples=60, deadline=None)
def test_any_answer_comes_back_from_the_page_as_it_was(answer, prompt):
    data = report_of(SMALL)
    data = replace(data, samples=[Sample(prompt, [Answer("s", answer, {})])])
    page = render(data)
    page.encode("utf-8")
    parsed = Page(page)
    (shown,) = [i for _, a, i in parsed.elements if a.get("class") == "answer"]
    unfit = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
    assert shown == re.sub(unfit, "\N{REPLACEMENT CHARACTER}", answer)


SMALL = summary_of(methods=("vc_soup",), seeds=(0,))


def test_a_page_without_samples_has_no_section_for_them(summary):
    page = render(replace(report_of(summary), samples=[]))
    assert 'id="answers"' not in page and 'href="#answers"' not in page


@pytest.mark.parametrize(
    ("value", "decimals", "shown"),
    [(-0.001, 2, "0.00"), (-1.5, 2, "−1.50"), (1234567, None, "1,234,567"), (None, 2, "–"),
     (0.61234, None, "0.6123"), (5310.7, None, "5,311"), ("n/a", None, "n/a"),
     (1e-7, None, "1e−07")],
)  # fmt: skip
def test_numbers_are_written_for_reading(value, decimals, shown):
    assert number(value, decimals) == shown


@pytest.mark.parametrize(
    ("span", "decimals"), [(3.2, 2), (0.05, 4), (99, 1), (450, 0), (1e6, 0), (0, 2), (1e-12, 9)]
)
def test_decimals_show_three_digits_of_the_range(span, decimals):
    assert decimals_for(span) == decimals


def test_methods_of_any_name_have_styles_of_their_own():
    names = [f"method {i}" for i in range(36)]
    styles = method_styles(summary_of(methods=names, seeds=(0,)))
    assert list(styles) == names and len(set(styles.values())) == 36
    first = [(style.colour, style.sign) for style in styles.values()][:3]
    assert first == [("#1f62b0", "●"), ("#d96b1f", "■"), ("#2f9163", "▲")]


def chunks(png: bytes) -> list[bytes]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    names, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        names.append(png[at + 4 : at + 8])
        at += 12 + length
    return names


@pytest.mark.parametrize("draw", [figures.front_plot, figures.hypervolume_plot, figures.edge_plot])
def test_plots_are_the_same_bytes_whatever_the_users_settings(summary, draw):
    first = draw(summary)
    assert not {b"tEXt", b"zTXt", b"iTXt", b"tIME"} & set(chunks(first))
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "savefig.dpi": 40}):
        before = dict(matplotlib.rcParams)
        assert draw(summary) == first
        assert dict(matplotlib.rcParams) == before
    assert Image.open(io.BytesIO(first)).width == 1440


@pytest.mark.parametrize("values", [("a",), ("a", "b", "c")])
def test_the_front_is_drawn_for_any_number_of_values(values):
    image = Image.open(io.BytesIO(figures.front_plot(summary_of(values=values, seeds=(0,)))))
    assert image.width == 1440
    assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_plots_of_a_run_without_soups_or_differences():
    same = {"a": np.ones(3), "b": np.ones(3)}
    base = Evaluated("base", None, None, None, same)
    soup = Evaluated("soup", "m", 0, {"a": 1.0, "b": 0.0}, same)
    for evaluated in ([base], [base, soup], [soup]):
        summary = summarise(evaluated, resamples=100, confidence=0.9)
        assert Image.open(io.BytesIO(figures.front_plot(summary))).width == 1440
        assert Image.open(io.BytesIO(figures.hypervolume_plot(summary))).width == 1440
        Page(render(report_of(summary)))
        with pytest.raises(ValueError, match="no edge"):
            figures.edge_plot(summary)


def test_labels_cover_neither_each_other_nor_markers_nor_lines():
    figure = Figure(figsize=(4, 3), dpi=100)
    axes = figure.subplots()
    draw = np.random.default_rng(0)
    points = [tuple(map(float, point)) for point in draw.uniform(size=(40, 2))]
    line = np.array(sorted(points[:6]))
    axes.plot(*zip(*points, strict=True), "o", ms=6)
    place_labels(axes, [Label(p, "0.25/0.75", "black", 5) for p in points],
                 [(p, 6.0) for p in points], [line])  # fmt: skip
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.texts]
    assert 5 < len(boxes) < 40  # some fit nowhere and are left out
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not box.count_contains(axes.transData.transform(points))
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
        dense = [a + t * (b - a) for a, b in zip(line, line[1:], strict=False)
                 for t in np.linspace(0, 1, 40)]  # fmt: skip
        assert not box.count_contains(axes.transData.transform(dense))


@pytest.mark.processes
def test_the_page_needs_no_plotting_library_and_no_framework():
    code = (
        "import sys, vcsoup_dist.report.page, vcsoup_dist.report.tables\n"
        "heavy = {'matplotlib', 'torch', 'ray', 'deepspeed', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
